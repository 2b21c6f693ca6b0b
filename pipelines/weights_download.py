"""One large file over HTTPS: in pieces that survive an interruption, checked, and whole or not there at all.

What has arrived is in `<file>.part`, with what the server called it (ETag) in `<file>.part.json`; the next call goes on
where the last one stopped, unless the server's file has changed since. Plain HTTP is allowed to this machine only.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from .errors import InspectError

Progress = Callable[[int, "int | None"], None]
"""Called with the bytes that are here and the bytes of the whole file, if the server said how many."""

CHUNK = 1 << 20
ATTEMPTS = 4
"""Connections that may break off, one after the other without a byte between them, before the download gives up."""

_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class DownloadError(InspectError):
    """A file could not be fetched; what has arrived is kept for the next try where it can be used."""


class Unreachable(DownloadError):
    """No connection to the server could be made, or it broke off time and again."""


class Refused(DownloadError):
    """The server refuses the file; `status` is its HTTP status."""

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Source:
    """Where a file comes from and what it must be."""

    url: str
    sha256: str | None = None
    """The checksum, or its first digits; None when its owner published none."""
    most_bytes: int | None = None
    """More than this cannot be the file."""


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def download(
    source: Source,
    path: Path,
    progress: Progress | None = None,
    token: str | None = None,
    timeout_s: float = 30.0,
    pause_s: float = 1.0,
    context: ssl.SSLContext | None = None,
) -> None:
    """Fetches `source` to `path`, going on from an earlier try; `token` is sent to the first server only.

    Raises Unreachable, Refused, or DownloadError (checksum, disk full, another download of the same file under way).
    """
    _require_safe(source.url)
    opener = urllib.request.build_opener(
        urllib.request.HTTPSHandler(context=context or ssl.create_default_context()), _SafeRedirects()
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(path.with_name(path.name + ".part")) as part:
            failures = 0
            while True:
                before = os.fstat(part.fileno()).st_size
                try:
                    _fetch(opener, source, path, part, progress or (lambda *_: None), token, timeout_s)
                    break
                except _BrokenOff as broken:
                    failures = failures + 1 if os.fstat(part.fileno()).st_size <= before else 1
                    if failures >= ATTEMPTS or not broken.passing:
                        raise Unreachable(_unreachable(source, part, broken)) from None
                    time.sleep(pause_s * failures)
            _check(source, path, part)
            part.flush()
            os.fsync(part.fileno())
            Path(part.name).replace(path)
            _notes(path).unlink(missing_ok=True)
    except OSError as error:
        raise DownloadError(f"{path}: cannot be written: {error.strerror or error}") from None


class _BrokenOff(Exception):
    """The connection failed; `passing` when trying again may help."""

    def __init__(self, reason: str, passing: bool = True) -> None:
        super().__init__(reason)
        self.passing = passing


def _fetch(
    opener: urllib.request.OpenerDirector,
    source: Source,
    path: Path,
    part: IO[bytes],
    progress: Progress,
    token: str | None,
    timeout_s: float,
) -> None:
    """One connection: appends to the part file what it brings."""
    have = os.fstat(part.fileno()).st_size
    tag = _read_tag(path, source.url)
    if have and tag is None:  # it cannot be told whether these bytes belong to the server's file of today
        part.truncate(0)
        have = 0
    request = urllib.request.Request(source.url, headers={"User-Agent": "edge-inspect", "Accept-Encoding": "identity"})  # noqa: S310 - checked by _require_safe
    if token:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    if have and tag is not None:
        request.add_header("Range", f"bytes={have}-")
        request.add_header("If-Range", tag)
    try:
        with opener.open(request, timeout=timeout_s) as response:
            total = _place(response, path, part, source, have)
            _copy(response, path, part, source, total, progress)
    except urllib.error.HTTPError as error:
        _on_status(error, source, path, part)
    except urllib.error.URLError as error:
        # A certificate that fails, or a name that does not exist, fails the same way a second later.
        refused = isinstance(error.reason, ssl.SSLCertVerificationError)
        raise _BrokenOff(str(error.reason), passing=not refused and not _is_offline(error.reason)) from None
    except (http.client.HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
        raise _BrokenOff(str(error) or type(error).__name__) from None


def _place(response: Any, path: Path, part: IO[bytes], source: Source, have: int) -> int | None:
    """Readies the part file for the body of this answer; returns the size of the whole file, if known."""
    length = response.headers.get("Content-Length")
    size = int(length) if length is not None and length.isdigit() else None
    if response.status == 206:
        start, _, whole = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")
        if start != str(have):
            part.truncate(0)
            raise _BrokenOff(f"it sent bytes from {start or '?'} instead of {have}")
        text = whole.partition("/")[2]
        total = int(text) if text.isdigit() else None
    else:
        part.truncate(0)  # a whole file: the first time, or because the server's file has changed
        have, total = 0, size
        tag = response.headers.get("ETag") or response.headers.get("Last-Modified")
        if tag is not None and not tag.startswith("W/"):
            _notes(path).write_text(json.dumps({"url": source.url, "tag": tag}))
        else:
            _notes(path).unlink(missing_ok=True)
    part.seek(0, os.SEEK_END)
    if total is not None:
        _require_room(path, total, have)
        _require_plausible(source, total)
    return total


def _copy(response: Any, path: Path, part: IO[bytes], source: Source, total: int | None, progress: Progress) -> None:
    have = part.tell()
    progress(have, total)
    while True:
        try:
            block = response.read(CHUNK)
        except http.client.IncompleteRead as cut:
            part.write(cut.partial)
            part.flush()
            raise
        if not block:
            break
        part.write(block)
        have += len(block)
        _require_plausible(source, have)
        progress(have, total)
    part.flush()
    if total is not None and have != total:
        raise _BrokenOff(f"{have} of {total} bytes came")


def _on_status(error: urllib.error.HTTPError, source: Source, path: Path, part: IO[bytes]) -> None:
    """An answer that is no file."""
    with error:
        if error.code == 416:  # the part is as long as the file, or longer
            total = (error.headers.get("Content-Range") or "").rpartition("/")[2]
            if total.isdigit() and int(total) == os.fstat(part.fileno()).st_size:
                return
            part.truncate(0)
            _notes(path).unlink(missing_ok=True)
            raise _BrokenOff("the part that was kept does not belong to the server's file") from None
        if error.code in (408, 429) or error.code >= 500:
            raise _BrokenOff(f"the server answers {error.code} {error.reason}") from None
        raise Refused(f"{source.url}: the server answers {error.code} {error.reason}", error.code) from None


def _check(source: Source, path: Path, part: IO[bytes]) -> None:
    if source.sha256 is None:
        return
    part.flush()
    found = sha256_of(Path(part.name))
    if not found.startswith(source.sha256):
        part.truncate(0)  # going on from these bytes could never succeed
        _notes(path).unlink(missing_ok=True)
        raise DownloadError(
            f"{source.url}: what came has the SHA-256 {found}, its owner's file has {source.sha256}; it was thrown "
            "away. Try again; if it stays so, the file was changed on its way or by its owner"
        )


def _require_safe(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme == "https" or (parts.scheme == "http" and parts.hostname in _LOOPBACK):
        return
    raise DownloadError(f"{url}: only HTTPS is used to fetch weights")


def _require_room(path: Path, total: int, have: int) -> None:
    stat = os.statvfs(path.parent)
    free = stat.f_bavail * stat.f_frsize
    # Twice: the file itself, and the converted copy that is written before the file is removed.
    if free < 2 * total - have:
        raise DownloadError(
            f"{path.parent}: {free / 1e6:.0f} MB free, {(2 * total - have) / 1e6:.0f} MB needed; make room, or name "
            "another folder in EDGE_INSPECT_DATA_HOME"
        )


def _require_plausible(source: Source, size: int) -> None:
    if source.most_bytes is not None and size > source.most_bytes:
        raise DownloadError(f"{source.url}: sends {size / 1e6:.0f} MB or more, the file it should be is smaller")


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        _require_safe(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _locked(part: Path) -> Iterator[IO[bytes]]:
    """The part file, opened to append and held against a second download of the same file."""
    busy = f"{part}: another process is fetching this file; wait for it to end"
    with part.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DownloadError(busy) from None
        if not part.exists() or not os.path.samestat(os.fstat(file.fileno()), part.stat()):
            raise DownloadError(busy)  # it was renamed between being opened and being held: that fetch is complete
        try:
            yield file
        finally:
            if os.fstat(file.fileno()).st_size == 0:
                part.unlink(missing_ok=True)


def _notes(path: Path) -> Path:
    return path.with_name(path.name + ".part.json")


def _read_tag(path: Path, url: str) -> str | None:
    try:
        notes = json.loads(_notes(path).read_text())
        return str(notes["tag"]) if notes["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _is_offline(reason: object) -> bool:
    """No such host, no route, nobody listening: waiting a second does not help."""
    return isinstance(reason, OSError) and not isinstance(reason, TimeoutError | ssl.SSLError)


def _unreachable(source: Source, part: IO[bytes], broken: _BrokenOff) -> str:
    have = os.fstat(part.fileno()).st_size
    kept = f"; {have / 1e6:.1f} MB have come and are kept, the next try goes on from there" if have else ""
    return f"no connection to {urlsplit(source.url).hostname} ({broken}){kept}"
