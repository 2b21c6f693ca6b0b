"""The service manager's notify protocol (sd_notify(3), sd_watchdog_enabled(3)), client side.

Works with systemd and with the line's own supervisor, which offers its children the same socket. Without a
NOTIFY_SOCKET in the environment everything here does nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Mapping


class Notifier:
    """Tells the service manager how this process is. Never blocks and never raises."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        self._socket: socket.socket | None = None
        self.watchdog_s = _watchdog_s(environment)
        """Seconds after which a silent process is killed; None where nobody watches. Feed at half of it or faster."""

    def ready(self) -> None:
        """Start-up is finished."""
        self._send("READY=1")

    def stopping(self) -> None:
        """The process is on its way out."""
        self._send("STOPPING=1")

    def watchdog(self) -> None:
        """The work loop turns."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """One line for people, shown by `systemctl status`."""
        self._send("STATUS=" + " ".join(text.split())[:512])

    def extend(self, seconds: float) -> None:
        """Start-up, or stopping, needs up to so many seconds more from now."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def close(self) -> None:
        """Closes the socket; safe to call twice."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, text: str) -> None:
        if self._address is None:
            return
        with contextlib.suppress(OSError):  # a manager that is gone or slow must not stop the line
            if self._socket is None:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
                self._socket.setblocking(False)
            self._socket.sendto(text.encode(), self._address)


def _address(name: str) -> str | None:
    if name.startswith("@"):  # Linux's abstract name space
        return "\0" + name[1:]
    return name if name.startswith("/") else None


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    try:
        microseconds = int(environment.get("WATCHDOG_USEC", ""))
        pid = int(environment.get("WATCHDOG_PID", str(os.getpid())))
    except ValueError:
        return None
    return microseconds / 1e6 if microseconds > 0 and pid == os.getpid() else None
