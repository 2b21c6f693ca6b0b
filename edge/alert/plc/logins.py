"""Passwords and key files of PLC connections: read when a connection is made, never kept in settings or shown."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Protocol

from edge.errors import PlcError


class Login(Protocol):
    """Where the password of `user` comes from."""

    @property
    def password_file(self) -> Path | None:
        """File that holds it."""
        ...

    @property
    def password_env(self) -> str | None:
        """Environment variable that holds it."""
        ...


def read_password(login: Login, owner: str) -> str | None:
    """The password, None where none is set; one line break at a file's end is not part of it.

    Raises `PlcError` that begins with `owner`, where the file or variable is missing or the file is open to others.
    """
    if login.password_file is not None:
        return private_file(login.password_file, "password_file", owner).decode("utf-8", "replace").rstrip("\r\n")
    if login.password_env is not None:
        password = os.environ.get(login.password_env)
        if password is None:
            raise PlcError(f"{owner}: password_env: the environment variable {login.password_env} is not set")
        return password
    return None


def private_file(path: Path, key: str, owner: str) -> bytes:
    """The content of a file that holds a secret.

    Raises `PlcError` that begins with `owner` and names the settings key `key`, where the file cannot be read or other
    users may read it.
    """
    try:
        if path.stat().st_mode & 0o077:
            raise PlcError(f"{owner}: {key}: other users may read {path}; run `chmod 600 {path}`")
        return path.read_bytes()
    except OSError as error:
        raise PlcError(f"{owner}: {key}: cannot read {path}: {error.strerror}") from error
