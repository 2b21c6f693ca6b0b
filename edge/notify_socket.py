"""The receiving side of the sd_notify protocol: what systemd is for its services, the supervisor is for its children.

Datagrams of `KEY=VALUE` lines (man 3 sd_notify) on a unix socket. Who sent one is told by the kernel (SCM_CREDENTIALS),
never by the datagram itself. `edge.notify` is the sending side.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from edge.errors import TransportError

_CREDENTIALS = struct.Struct("3i")  # struct ucred: pid, uid, gid
_MAX_BYTES = 8192
_MAX_PATH = 107  # sockaddr_un.sun_path without its final zero


@dataclass(frozen=True)
class Notice:
    """One datagram: who sent it, and what it says. Lines that are no `KEY=VALUE` are left out."""

    pid: int
    fields: dict[str, str]


class NotifySocket:
    """The socket at `path`; replaces a leftover. Raises `TransportError` where it cannot be bound."""

    def __init__(self, path: Path) -> None:
        if len(str(path).encode()) > _MAX_PATH:
            raise TransportError(f"{path}: longer than {_MAX_PATH} bytes; choose a shorter line.runtime_dir")
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            path.unlink(missing_ok=True)
            self._socket.bind(str(path))
            path.chmod(0o600)
        except OSError as error:
            self._socket.close()
            raise TransportError(
                f"{path}: cannot bind this socket: {error.strerror}; check line.runtime_dir"
            ) from error
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self._socket.setblocking(False)

    def fileno(self) -> int:
        """For select and poll."""
        return self._socket.fileno()

    def receive(self) -> list[Notice]:
        """Everything that has arrived; never waits."""
        notices: list[Notice] = []
        while True:
            try:
                data, ancillary, _flags, _ = self._socket.recvmsg(_MAX_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size))
            except BlockingIOError:
                return notices
            for level, kind, payload in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                    pid, _uid, _gid = _CREDENTIALS.unpack(payload[: _CREDENTIALS.size])
                    notices.append(Notice(pid, _parse(data)))

    def close(self) -> None:
        """Closes and removes the socket."""
        self._socket.close()
        self.path.unlink(missing_ok=True)


def _parse(data: bytes) -> dict[str, str]:
    fields = {}
    for line in data.decode("utf-8", "replace").splitlines():
        key, separator, value = line.partition("=")
        if separator:
            fields[key] = value
    return fields
