"""ZeroMQ between the line's processes: who binds what, how long queues are, and what happens when they are full.

    infer.in       PULL, bound by inference     every capture pushes FrameRefs
    alert.in       PULL, bound by alert         every capture pushes FrameRefs, inference pushes Scores
    plc.in         PULL, bound by plc           alert pushes Rulings, and its Health ten times a second
    <process>.pub  PUB, bound by every process  its Health, once a second; alert's Verdicts, plc's PlcAnswers as well

On one host these are Unix sockets in the line's runtime folder (mode 0700). Inference on another host has
`inference.endpoint = "tcp://…"` (and `alert.endpoint` for the way back): the same messages, then with CURVE, and with
the pixels as a second part.

Nothing here ever waits for a slow or missing peer. Every socket has an explicit high-water mark; each `Queue` says
what becomes of a message that finds it full. Sockets belong to the thread that made them.
"""

from __future__ import annotations

import errno
import fcntl
import math
import os
import socket as sockets
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
import zmq
from numpy.typing import NDArray
from zmq.auth.thread import ThreadAuthenticator

from edge.errors import LineInUse, TransportError
from edge.keys import client_keys, server_keys
from edge.messages import MAX_BYTES

if TYPE_CHECKING:
    from edge.settings import Settings

MAX_PIXELS = 256 << 20  # bytes of a frame that travels with its message
IPC_PATH_MAX = 107  # bytes of a Unix socket's path (sockaddr_un)


@dataclass(frozen=True)
class Queue:
    """A bounded queue: its high-water mark on each side, and what happens when both are full."""

    length: int
    when_full: str


ANNOUNCEMENTS = Queue(4096, "dropped and counted by the sender; the ring's journal still has the announcement")
FRAMES = Queue(128, "dropped and counted by the sender; the part becomes UNJUDGED at its deadline")
REMOTE_FRAMES = Queue(4, "as FRAMES; shorter, because each message carries its pixels")
SCORES = Queue(1024, "dropped and counted by the sender; the part becomes UNJUDGED at its deadline")
RULINGS = Queue(1024, "dropped and counted by the sender; the PLC then decides by default")
BROADCASTS = Queue(1000, "dropped for the slow subscriber alone")


@dataclass(frozen=True)
class Endpoint:
    """An address with its queue. `keys` is the folder of CURVE keys, for tcp."""

    url: str
    queue: Queue
    keys: Path | None = None

    @property
    def remote(self) -> bool:
        """Whether it may be on another host, so that pixels must travel along."""
        return self.url.startswith("tcp:")


class Endpoints:
    """Every address of a line."""

    def __init__(self, settings: Settings) -> None:
        self.runtime = settings.paths.runtime
        keys = settings.line.keys_dir
        remote = settings.inference.endpoint
        self.infer_in = Endpoint(remote, REMOTE_FRAMES, keys) if remote else Endpoint(self._ipc("infer.in"), FRAMES)
        self.alert_in = Endpoint(settings.alert.endpoint or self._ipc("alert.in"), ANNOUNCEMENTS, keys)

    @property
    def plc_in(self) -> Endpoint:
        """Where alert pushes what the PLC is to be told."""
        return Endpoint(self._ipc("plc.in"), RULINGS)

    def publisher(self, process: str) -> Endpoint:
        """Where a process publishes."""
        return Endpoint(self._ipc(f"{process}.pub"), BROADCASTS)

    def lock(self, process: str) -> Path:
        """The lock file of a process."""
        return self.runtime / f"{process}.lock"

    def _ipc(self, name: str) -> str:
        return f"ipc://{self.runtime / name}"


class _Socket:
    """What all sockets here share."""

    def __init__(self, kind: int, endpoint: Endpoint, context: zmq.Context[zmq.Socket[bytes]] | None) -> None:
        self.endpoint = endpoint
        self.socket: zmq.Socket[bytes] = (context or zmq.Context.instance()).socket(kind)
        self.socket.setsockopt(zmq.SNDHWM, endpoint.queue.length)
        self.socket.setsockopt(zmq.RCVHWM, endpoint.queue.length)
        self.socket.setsockopt(zmq.MAXMSGSIZE, MAX_PIXELS if endpoint.remote else MAX_BYTES)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 20)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
        if endpoint.remote:  # a host that vanished says nothing: ask
            self.socket.setsockopt(zmq.HEARTBEAT_IVL, 1000)
            self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3000)

    def _bind(self) -> None:
        url = self.endpoint.url
        try:
            if self.endpoint.remote:
                _serve_curve(self.socket, self.endpoint)
                url = _local_url(url)
            self.socket.bind(url)
        except zmq.ZMQError as error:
            self.socket.close()
            raise TransportError(_bind_advice(self.endpoint.url, error)) from error
        except BaseException:
            self.socket.close()
            raise

    def _connect(self, endpoint: Endpoint) -> None:
        try:
            if endpoint.remote:
                keys = client_keys(_keys_folder(endpoint))
                self.socket.curve_publickey, self.socket.curve_secretkey = keys.public, keys.secret
                self.socket.curve_serverkey = keys.server
            self.socket.connect(endpoint.url)
        except zmq.ZMQError as error:
            self.socket.close()
            raise TransportError(f"{endpoint.url}: cannot connect: {error.strerror}") from error
        except BaseException:
            self.socket.close()
            raise

    def close(self) -> None:
        """Closes the socket; safe to call twice."""
        self.socket.close()

    def __enter__(self) -> _Socket:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Inbox(_Socket):
    """Receives what others push. Bound once; any number of senders. Raises `TransportError` where it cannot bind."""

    def __init__(self, endpoint: Endpoint, context: zmq.Context[zmq.Socket[bytes]] | None = None) -> None:
        super().__init__(zmq.PULL, endpoint, context)
        self.malformed = 0  # messages of more than two parts, dropped
        self._bind()

    def recv(self, timeout_s: float = 0.0) -> tuple[bytes, NDArray[np.uint8] | None] | None:
        """The next message and its pixels (flat, read-only; None where none came along), or None after the time-out."""
        message = self._take()
        until = time.monotonic() + timeout_s
        # Again and again: a poll may end early, or promise a message that is not whole yet (seen over CURVE).
        while message is None and (left_s := until - time.monotonic()) > 0:
            self.socket.poll(math.ceil(left_s * 1000))
            message = self._take()
        return message

    def _take(self) -> tuple[bytes, NDArray[np.uint8] | None] | None:
        while True:
            try:
                data = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return None
            if not self.socket.getsockopt(zmq.RCVMORE):
                return data, None
            pixels = self.socket.recv(copy=False)
            if not pixels.more:
                array = np.frombuffer(pixels.buffer, np.uint8)
                array.flags.writeable = False
                return data, array
            while self.socket.getsockopt(zmq.RCVMORE):
                self.socket.recv(copy=False)
            self.malformed += 1


class Outbox(_Socket):
    """Pushes messages to one inbox, which may come and go. Never waits.

    Without `hold`, a message is refused while the peer is absent; with it, messages wait for the peer's return as far
    as the queue reaches. On `close`, what is queued gets half a second to leave.
    """

    def __init__(
        self, endpoint: Endpoint, hold: bool = False, context: zmq.Context[zmq.Socket[bytes]] | None = None
    ) -> None:
        super().__init__(zmq.PUSH, endpoint, context)
        self.sent = 0
        self.dropped = 0  # the queue was full, or the peer absent
        self.socket.setsockopt(zmq.IMMEDIATE, 0 if hold else 1)
        self.socket.setsockopt(zmq.LINGER, 500)
        self._connect(endpoint)

    def send(self, message: bytes, pixels: NDArray[np.uint8] | None = None) -> bool:
        """Queues a message, with pixels (C-contiguous, copied) if given. False where it was dropped."""
        try:
            if pixels is None:
                self.socket.send(message, zmq.NOBLOCK)
            else:
                # Copied, because a ring slot may be overwritten before the network has taken it.
                self.socket.send_multipart([message, pixels.data], zmq.NOBLOCK, copy=True)
        except zmq.Again:
            self.dropped += 1
            return False
        self.sent += 1
        return True

    def wait_for_peer(self, timeout_s: float) -> bool:
        """Waits until a message would be accepted. For start-up and tests; the line itself never waits."""
        return bool(self.socket.poll(math.ceil(timeout_s * 1000), zmq.POLLOUT))


class Broadcast(_Socket):
    """Publishes to whoever listens. A slow listener loses messages, nobody else notices."""

    def __init__(self, endpoint: Endpoint, context: zmq.Context[zmq.Socket[bytes]] | None = None) -> None:
        super().__init__(zmq.PUB, endpoint, context)
        self.socket.setsockopt(zmq.LINGER, 200)
        self._bind()

    def send(self, message: bytes) -> None:
        """Publishes a message."""
        self.socket.send(message, zmq.NOBLOCK)


class Listener(_Socket):
    """Hears several broadcasts, whether or not their processes are up yet."""

    def __init__(self, endpoints: Iterable[Endpoint], context: zmq.Context[zmq.Socket[bytes]] | None = None) -> None:
        endpoints = list(endpoints)
        if not endpoints:
            raise TransportError("nothing to listen to: no process was named")
        super().__init__(zmq.SUB, endpoints[0], context)
        self.socket.setsockopt(zmq.SUBSCRIBE, b"")
        for endpoint in endpoints:
            self._connect(endpoint)

    def recv(self, timeout_s: float = 0.0) -> bytes | None:
        """The next message, or None after the time-out."""
        if not self.socket.poll(math.ceil(timeout_s * 1000)):
            return None
        return self.socket.recv(zmq.NOBLOCK)


class ProcessLock:
    """Only one live process may play a part in a line: ZeroMQ would let a second one steal its Unix sockets silently.

    A `flock`: the kernel drops it at death. Raises `LineInUse` that names the holder's pid.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise TransportError(f"{path}: cannot open this lock: {error.strerror}") from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.read(self._fd, 32).decode("ascii", "replace").strip() or "?"
            os.close(self._fd)
            raise LineInUse(
                f"{path}: process {pid} runs this already; stop it (`kill {pid}`), or give the line another name or "
                "runtime_dir"
            ) from error
        os.ftruncate(self._fd, 0)
        os.write(self._fd, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Lets the next one in; safe to call twice. The file stays: removing it would race with a newcomer."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> ProcessLock:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.release()


def ensure_runtime(folder: Path) -> None:
    """Makes the runtime folder, for this user alone. Raises `TransportError` where it is, or may become, another's."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise TransportError(
            f"{folder}: cannot make the runtime folder: {error.strerror}; set [line] runtime_dir"
        ) from error
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
        raise TransportError(f"{folder}: not a folder of this user; remove it, or set [line] runtime_dir")
    if status.st_mode & 0o022:
        raise TransportError(f"{folder}: other users may write here; run `chmod 700 {folder}`")


_DOMAIN = "edge-inspect"  # of ZeroMQ's authentication
_guards: dict[zmq.Context[zmq.Socket[bytes]], ThreadAuthenticator] = {}


class _KnownClients:
    """Tells ZeroMQ's authenticator which clients' public keys are welcome."""

    def __init__(self, clients: frozenset[bytes]) -> None:
        self._clients = clients

    def callback(self, domain: str, key: bytes) -> bool:
        """Whether the client with this public key (Z85) may speak."""
        return key in self._clients


def _serve_curve(socket: zmq.Socket[bytes], endpoint: Endpoint) -> None:
    keys = server_keys(_keys_folder(endpoint))
    context = socket.context
    if context not in _guards or not _guards[context].is_alive():
        _guards[context] = ThreadAuthenticator(context)
        _guards[context].start()
    _guards[context].configure_curve_callback(_DOMAIN, _KnownClients(keys.clients))
    socket.curve_publickey, socket.curve_secretkey = keys.public, keys.secret
    socket.curve_server = True
    socket.zap_domain = _DOMAIN.encode()


def stop_guards() -> None:
    """Ends the threads that check keys, at the end of a process."""
    for guard in _guards.values():
        guard.stop()
    _guards.clear()


def _keys_folder(endpoint: Endpoint) -> Path:
    if endpoint.keys is None:
        raise TransportError(f"{endpoint.url}: tcp:// needs keys: run `edge keys create FOLDER`, set [line] keys_dir")
    return endpoint.keys


def _local_url(url: str) -> str:
    """The address to bind for a tcp URL: ZeroMQ binds to numbers, people write names."""
    host, _, port = url.removeprefix("tcp://").rpartition(":")
    try:
        return f"tcp://{sockets.gethostbyname(host)}:{port}"
    except OSError as error:
        raise TransportError(f"{url}: unknown host {host}") from error


def _bind_advice(url: str, error: zmq.ZMQError) -> str:
    if url.startswith("ipc://"):
        path = url.removeprefix("ipc://")
        if error.errno == errno.ENAMETOOLONG or len(os.fsencode(path)) > IPC_PATH_MAX:
            return f"{path}: a socket's path has at most {IPC_PATH_MAX} bytes; set [line] runtime_dir to a shorter one"
        return f"{path}: cannot bind this socket: {error.strerror}; does its folder exist, and may you write there?"
    if error.errno == errno.EADDRINUSE:
        return f"{url}: the port is in use; stop the other program (`ss -ltnp`), or choose another port"
    return f"{url}: cannot bind: {error.strerror}; is this an address of this computer?"
