"""Keys of a line that spans two computers: CURVE (curvezmq.org, RFC 26) key pairs in files of mode 0600.

`server.key` stays with the processes that bind a tcp:// endpoint, `client.key` with those that connect to one; a
computer that does both gets both. A server accepts its own clients only, a client talks to its own server only.
Secrets are never printed or logged.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from edge.errors import TransportError

SERVER_FILE = "server.key"
CLIENT_FILE = "client.key"


@dataclass(frozen=True)
class ServerKeys:
    """What a bound endpoint needs. Keys are Z85 text."""

    public: bytes
    secret: bytes = field(repr=False)
    clients: frozenset[bytes]


@dataclass(frozen=True)
class ClientKeys:
    """What a connecting endpoint needs. Keys are Z85 text."""

    public: bytes
    secret: bytes = field(repr=False)
    server: bytes


def create_keys(folder: Path) -> list[Path]:
    """Makes both key files in `folder`, which is made with mode 0700. Returns their paths.

    Raises `TransportError` where either file exists (a running line would lose its peers) or cannot be written.
    """
    paths = [folder / SERVER_FILE, folder / CLIENT_FILE]
    for path in paths:
        if path.exists():
            raise TransportError(f"{path}: this key exists already; remove it first to replace it on every computer")
    server_public, server_secret = zmq.curve_keypair()
    client_public, client_secret = zmq.curve_keypair()
    contents = [
        {"public": server_public, "secret": server_secret, "clients": [client_public]},
        {"public": client_public, "secret": client_secret, "server": server_public},
    ]
    written: list[Path] = []
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path, content in zip(paths, contents, strict=True):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            written.append(path)
            with os.fdopen(fd, "w", encoding="ascii") as file:
                json.dump(content, file, default=bytes.decode, indent=2)
                file.write("\n")
                file.flush()
                os.fsync(file.fileno())
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        raise TransportError(f"{folder}: cannot write keys: {error.strerror}") from error
    return paths


def server_keys(folder: Path) -> ServerKeys:
    """Reads `server.key`. Raises `TransportError` where it is missing, damaged or open to other users."""
    content = _read(folder / SERVER_FILE, {"public", "secret", "clients"})
    if not isinstance(content["clients"], list):
        raise TransportError(f"{folder / SERVER_FILE}: `clients` is no list; create the keys anew")
    return ServerKeys(
        _key(folder / SERVER_FILE, content["public"]),
        _key(folder / SERVER_FILE, content["secret"]),
        frozenset(_key(folder / SERVER_FILE, client) for client in content["clients"]),
    )


def client_keys(folder: Path) -> ClientKeys:
    """Reads `client.key`. Raises `TransportError` where it is missing, damaged or open to other users."""
    content = _read(folder / CLIENT_FILE, {"public", "secret", "server"})
    return ClientKeys(*(_key(folder / CLIENT_FILE, content[name]) for name in ("public", "secret", "server")))


def _read(path: Path, names: set[str]) -> dict[str, Any]:
    try:
        if path.stat().st_mode & 0o077:
            raise TransportError(f"{path}: other users may read this key; run `chmod 600 {path}`")
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise TransportError(f"{path}: no such key; run `edge keys create {path.parent}`, or copy it here") from error
    except OSError as error:
        raise TransportError(f"{path}: cannot read this key: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise TransportError(f"{path}: this key file is damaged; copy it again or create the keys anew") from error
    if not isinstance(content, dict) or set(content) != names:
        raise TransportError(f"{path}: this is not a key file of that kind (it holds {', '.join(sorted(names))})")
    return content


def _key(path: Path, text: Any) -> bytes:
    if not (isinstance(text, str) and len(text) == 40 and text.isascii()):
        raise TransportError(f"{path}: a key in it is not 40 characters of Z85; copy it again or create the keys anew")
    return text.encode()
