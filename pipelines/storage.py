"""Writing so that nothing is ever half-written: temporary name, flush to disk, rename."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.errors import InspectError

_BLOCK = 1 << 20


def sha256_file(path: Path) -> str:
    """sha256 (hex) of a file, read in blocks. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Flushes a file or folder to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def new_folder(path: Path, error: type[InspectError], what: str) -> Iterator[Path]:
    """Yields a temporary folder beside `path` that becomes `path` in one step when the block ends without error.

    Raises `error` (naming `what`) where `path` exists already, appears meanwhile, or cannot be written. The temporary
    folder is removed whenever it does not become `path`.
    """
    if path.exists() or path.is_symlink():
        raise error(f"{path}: exists already, and {what} is never overwritten; choose another name or remove it first")
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}.part"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        yield temporary
        for file in sorted(temporary.rglob("*")):
            sync(file)
        sync(temporary)
        # Renaming onto a folder that is not empty fails, so of two writers exactly one wins.
        temporary.rename(path)
        sync(path.parent)
    except OSError as failure:
        if path.exists() and temporary.exists():
            raise error(f"{path}: another program made it meanwhile; choose another name") from failure
        raise error(f"{path}: cannot write {what}: {failure.strerror or failure}") from failure
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
