from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from edge.errors import LineInUse, MessageError, TransportError
from edge.keys import client_keys, create_keys, server_keys
from edge.messages import MAX_BYTES, decode
from edge.settings import load_settings
from edge.transport import (
    ANNOUNCEMENTS,
    BROADCASTS,
    FRAMES,
    REMOTE_FRAMES,
    SCORES,
    Broadcast,
    Endpoint,
    Endpoints,
    Inbox,
    Listener,
    Outbox,
    ProcessLock,
    Queue,
    ensure_runtime,
    stop_guards,
)

Context = zmq.Context[zmq.Socket[bytes]]
TINY = Queue(4, "dropped")


def ipc(folder: Path, name: str = "a.in", queue: Queue = FRAMES) -> Endpoint:
    return Endpoint(f"ipc://{folder / name}", queue)


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_messages_arrive_whole_and_in_order(runtime_dir: Path, zmq_context: Context) -> None:
    with Inbox(ipc(runtime_dir), zmq_context) as inbox, Outbox(ipc(runtime_dir), context=zmq_context) as outbox:
        assert outbox.wait_for_peer(5)
        for number in range(100):
            assert outbox.send(b"%d" % number)
        assert [inbox.recv(5) for _ in range(100)] == [(b"%d" % number, None) for number in range(100)]
        assert inbox.recv(0) is None
        assert (outbox.sent, outbox.dropped) == (100, 0)


def test_pixels_travel_along(runtime_dir: Path, zmq_context: Context) -> None:
    with Inbox(ipc(runtime_dir), zmq_context) as inbox, Outbox(ipc(runtime_dir), context=zmq_context) as outbox:
        assert outbox.wait_for_peer(5)
        pixels = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
        assert outbox.send(b"frame", pixels)
        pixels[:] = 0  # the slot is overwritten while the message is on its way
        received = inbox.recv(5)
        assert received is not None
        message, arrived = received
        assert message == b"frame"
        assert arrived is not None
        assert arrived.tolist() == list(range(60))
        assert not arrived.flags.writeable


def test_an_absent_peer_is_counted_and_never_waited_for(runtime_dir: Path, zmq_context: Context) -> None:
    with Outbox(ipc(runtime_dir), context=zmq_context) as outbox:
        began = time.monotonic()
        assert not outbox.send(b"nobody is there")
        assert not outbox.send(b"nobody is there", np.zeros(10, np.uint8))
        assert time.monotonic() - began < 1
        assert (outbox.sent, outbox.dropped) == (0, 2)
        with Inbox(ipc(runtime_dir), zmq_context) as inbox:  # the order of start does not matter
            assert outbox.wait_for_peer(5)
            assert outbox.send(b"now")
            assert inbox.recv(5) == (b"now", None)


def test_a_holding_outbox_keeps_messages_for_an_absent_peer(runtime_dir: Path, zmq_context: Context) -> None:
    with Outbox(ipc(runtime_dir, queue=TINY), hold=True, context=zmq_context) as outbox:
        sent = [outbox.send(b"%d" % number) for number in range(10)]
        assert sent == [True] * 4 + [False] * 6
        with Inbox(ipc(runtime_dir, queue=TINY), zmq_context) as inbox:
            assert [inbox.recv(5) for _ in range(4)] == [(b"%d" % number, None) for number in range(4)]


def test_a_full_queue_drops_and_counts_and_never_waits(runtime_dir: Path, zmq_context: Context) -> None:
    """The receiver is alive but takes nothing: the newest messages are dropped, the sender goes on."""
    endpoint = ipc(runtime_dir, queue=TINY)
    with Inbox(endpoint, zmq_context) as inbox, Outbox(endpoint, context=zmq_context) as outbox:
        assert outbox.wait_for_peer(5)
        payload = bytes(1 << 20)
        began = time.monotonic()
        sent = [outbox.send(b"%03d" % number + payload) for number in range(200)]
        assert time.monotonic() - began < 10
        assert outbox.sent + outbox.dropped == 200
        assert outbox.dropped > 150
        arrived = 0
        while (received := inbox.recv(1)) is not None:
            assert int(received[0][:3]) == [number for number, went in enumerate(sent) if went][arrived]
            arrived += 1
        assert arrived == outbox.sent


def test_a_peer_may_die_and_come_back(runtime_dir: Path, zmq_context: Context) -> None:
    with Outbox(ipc(runtime_dir), context=zmq_context) as outbox:
        for _ in range(3):
            with Inbox(ipc(runtime_dir), zmq_context) as inbox:
                assert outbox.wait_for_peer(5)
                deadline = time.monotonic() + 5
                while inbox.recv(0.05) is None:  # what was sent to the old one may be lost
                    assert time.monotonic() < deadline
                    outbox.send(b"again")


KILLED_INBOX = """
import sys
from edge.transport import FRAMES, Endpoint, Inbox
inbox = Inbox(Endpoint(sys.argv[1], FRAMES))
print("bound", flush=True)
while True:
    received = inbox.recv(60)
    print(received[0].decode(), flush=True)
"""


def test_a_killed_peer_is_replaced(runtime_dir: Path, zmq_context: Context, child: Callable[..., Any]) -> None:
    endpoint = ipc(runtime_dir)
    with Outbox(endpoint, context=zmq_context) as outbox:
        for life in range(2):
            peer = child(KILLED_INBOX, endpoint.url)
            assert peer.line() == "bound"
            assert outbox.wait_for_peer(5)
            assert outbox.send(b"life %d" % life)
            assert peer.line() == f"life {life}"
            os.kill(peer.pid, signal.SIGKILL)
            peer.wait()
            deadline = time.monotonic() + 5
            while outbox.wait_for_peer(0):  # until the death is noticed
                assert time.monotonic() < deadline
                time.sleep(0.001)
            assert not outbox.send(b"to nobody")


def test_messages_of_many_parts_are_dropped(runtime_dir: Path, zmq_context: Context) -> None:
    with Inbox(ipc(runtime_dir), zmq_context) as inbox, zmq_context.socket(zmq.PUSH) as hostile:
        hostile.connect(ipc(runtime_dir).url)
        hostile.send_multipart([b"a", b"b", b"c", b"d"])
        hostile.send_multipart([b"a"] * 3)
        hostile.send(b"good")
        assert inbox.recv(5) == (b"good", None)
        assert inbox.malformed == 2


def test_an_oversized_message_never_arrives(runtime_dir: Path, zmq_context: Context) -> None:
    with Inbox(ipc(runtime_dir), zmq_context) as inbox:
        with zmq_context.socket(zmq.PUSH) as hostile:
            hostile.setsockopt(zmq.LINGER, 0)
            hostile.connect(ipc(runtime_dir).url)
            hostile.send(bytes(MAX_BYTES + 1))
            assert inbox.recv(0.3) is None
        with Outbox(ipc(runtime_dir), context=zmq_context) as outbox:  # the inbox itself is unharmed
            assert outbox.wait_for_peer(5)
            assert outbox.send(bytes(MAX_BYTES))
            received = inbox.recv(5)
            assert received is not None
            assert len(received[0]) == MAX_BYTES


def test_garbage_on_the_socket_is_survived(runtime_dir: Path, zmq_context: Context) -> None:
    """ZeroMQ takes some random bytes for messages of a peer from before its handshake had versions: no harm is done.

    Over tcp such peers are turned away, because keys are checked (see `test_strangers_are_not_heard`).
    """
    with Inbox(ipc(runtime_dir), zmq_context) as inbox, Outbox(ipc(runtime_dir), context=zmq_context) as outbox:
        for seed in range(50):
            garbage = random.Random(seed).randbytes(2048)
            with socket.socket(socket.AF_UNIX) as raw, contextlib.suppress(ConnectionError):
                raw.connect(str(runtime_dir / "a.in"))
                raw.sendall(garbage if seed else b"GET / HTTP/1.1\r\n\r\n")
        assert outbox.wait_for_peer(5)
        assert outbox.send(b"good")
        while (received := inbox.recv(5)) != (b"good", None):
            assert received is not None
            with pytest.raises(MessageError):
                decode(received[0])


def test_what_is_queued_at_the_end_still_leaves(runtime_dir: Path, zmq_context: Context) -> None:
    with Inbox(ipc(runtime_dir), zmq_context) as inbox:
        outbox = Outbox(ipc(runtime_dir), context=zmq_context)
        assert outbox.wait_for_peer(5)
        for number in range(50):
            outbox.send(b"%d" % number)
        outbox.close()
        outbox.close()
        assert [inbox.recv(5) for _ in range(50)] == [(b"%d" % number, None) for number in range(50)]


def test_broadcasts_reach_all_listeners(runtime_dir: Path, zmq_context: Context) -> None:
    endpoints = [ipc(runtime_dir, f"{name}.pub", BROADCASTS) for name in ("infer", "alert", "absent")]
    with Listener(endpoints, zmq_context) as early, Broadcast(endpoints[0], zmq_context) as infer:
        with Broadcast(endpoints[1], zmq_context) as alert, Listener(endpoints, zmq_context) as late:
            heard: dict[int, set[bytes]] = {0: set(), 1: set()}
            deadline = time.monotonic() + 10
            while heard != {0: {b"i", b"a"}, 1: {b"i", b"a"}}:
                assert time.monotonic() < deadline
                infer.send(b"i")
                alert.send(b"a")
                for number, listener in enumerate((early, late)):
                    message = listener.recv(0.01)
                    while message is not None:
                        heard[number].add(message)
                        message = listener.recv()
        with pytest.raises(TransportError, match="nothing to listen to"):
            Listener([], zmq_context)


def test_a_slow_listener_loses_only_its_own(runtime_dir: Path, zmq_context: Context) -> None:
    endpoint = ipc(runtime_dir, "x.pub", TINY)
    with Broadcast(endpoint, zmq_context) as broadcast, Listener([endpoint], zmq_context) as listener:
        deadline = time.monotonic() + 5
        while listener.recv(0.01) is None:
            assert time.monotonic() < deadline
            broadcast.send(b"hello")
        began = time.monotonic()
        for _ in range(300):
            broadcast.send(bytes(1 << 20))
        assert time.monotonic() - began < 5
        assert listener.recv(5) is not None


# --- addresses, and what cannot be bound -----------------------------------------------------------------------------


def test_addresses_of_a_line(settings_file: Callable[..., Path], runtime_dir: Path) -> None:
    endpoints = Endpoints(load_settings(settings_file()))
    assert endpoints.infer_in == Endpoint(f"ipc://{runtime_dir}/infer.in", FRAMES)
    assert endpoints.alert_in == Endpoint(f"ipc://{runtime_dir}/alert.in", ANNOUNCEMENTS)
    assert endpoints.publisher("capture-top") == Endpoint(f"ipc://{runtime_dir}/capture-top.pub", BROADCASTS)
    assert endpoints.lock("infer") == runtime_dir / "infer.lock"
    assert not endpoints.infer_in.remote


def test_addresses_of_a_line_with_a_remote_engine(settings_file: Callable[..., Path], tmp_path: Path) -> None:
    extra = '[inference]\nendpoint = "tcp://box:5555"\n[alert]\nendpoint = "tcp://line:5556"'
    endpoints = Endpoints(load_settings(settings_file(extra, line='keys_dir = "keys"')))
    assert endpoints.infer_in == Endpoint("tcp://box:5555", REMOTE_FRAMES, tmp_path / "keys")
    assert endpoints.infer_in.remote
    assert endpoints.alert_in == Endpoint("tcp://line:5556", ANNOUNCEMENTS, tmp_path / "keys")


def test_every_queue_is_bounded_on_every_socket(runtime_dir: Path, zmq_context: Context) -> None:
    for queue in (ANNOUNCEMENTS, FRAMES, REMOTE_FRAMES, SCORES, BROADCASTS):
        assert 0 < queue.length <= 10_000
        assert queue.when_full
        endpoint = ipc(runtime_dir, "q.in", queue)
        with Inbox(endpoint, zmq_context) as inbox, Outbox(endpoint, context=zmq_context) as outbox:
            for wrapped in (inbox, outbox):
                assert wrapped.socket.getsockopt(zmq.SNDHWM) == queue.length
                assert wrapped.socket.getsockopt(zmq.RCVHWM) == queue.length
                assert 0 < wrapped.socket.getsockopt(zmq.MAXMSGSIZE) <= MAX_BYTES


def test_a_path_too_long_for_a_socket(tmp_path: Path, zmq_context: Context) -> None:
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    with pytest.raises(TransportError, match=r"at most 107 bytes; set .line. runtime_dir"):
        Inbox(ipc(folder), zmq_context)


def test_a_missing_folder(tmp_path: Path, zmq_context: Context) -> None:
    with pytest.raises(TransportError, match="cannot bind this socket"):
        Inbox(ipc(tmp_path / "no"), zmq_context)
    with pytest.raises(TransportError, match="cannot open this lock"):
        ProcessLock(tmp_path / "no" / "infer.lock")


# --- keys ------------------------------------------------------------------------------------------------------------


def test_a_port_in_use(tmp_path: Path, zmq_context: Context) -> None:
    create_keys(tmp_path / "keys")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(TransportError, match=f":{port}: the port is in use"):
            Inbox(Endpoint(f"tcp://127.0.0.1:{port}", REMOTE_FRAMES, tmp_path / "keys"), zmq_context)
    with pytest.raises(TransportError, match="unknown host"):
        Inbox(Endpoint("tcp://no.such.host.invalid:5555", REMOTE_FRAMES, tmp_path / "keys"), zmq_context)
    stop_guards()


def test_frames_travel_to_another_host(tmp_path: Path, zmq_context: Context, free_port: int) -> None:
    create_keys(tmp_path / "keys")
    endpoint = Endpoint(f"tcp://localhost:{free_port}", REMOTE_FRAMES, tmp_path / "keys")
    try:
        with Inbox(endpoint, zmq_context) as inbox, Outbox(endpoint, context=zmq_context) as outbox:
            assert outbox.wait_for_peer(10)
            pixels = np.random.default_rng(0).integers(0, 256, (500, 400, 3), np.uint8)
            assert outbox.send(b"frame", pixels)
            received = inbox.recv(10)
            assert received is not None
            assert received[1] is not None
            assert np.array_equal(received[1].reshape(pixels.shape), pixels)
    finally:
        stop_guards()


def test_strangers_are_not_heard(tmp_path: Path, zmq_context: Context, free_port: int) -> None:
    create_keys(tmp_path / "keys")
    create_keys(tmp_path / "stranger")
    url = f"tcp://127.0.0.1:{free_port}"
    try:
        with Inbox(Endpoint(url, REMOTE_FRAMES, tmp_path / "keys"), zmq_context) as inbox:
            for seed in range(20):  # no ZeroMQ at all
                with socket.create_connection(("127.0.0.1", free_port)) as raw, contextlib.suppress(ConnectionError):
                    raw.sendall(random.Random(seed).randbytes(2048))
            with zmq_context.socket(zmq.PUSH) as plain:  # no keys at all
                plain.setsockopt(zmq.LINGER, 0)
                plain.connect(url)
                plain.send(b"plain")
                with zmq_context.socket(zmq.PUSH) as stranger:  # knows the server's public key, has keys of its own
                    stranger.setsockopt(zmq.LINGER, 0)
                    keys = client_keys(tmp_path / "stranger")
                    stranger.curve_publickey, stranger.curve_secretkey = keys.public, keys.secret
                    stranger.curve_serverkey = server_keys(tmp_path / "keys").public
                    stranger.connect(url)
                    stranger.send(b"stranger")
                    other = Endpoint(url, REMOTE_FRAMES, tmp_path / "stranger")
                    with Outbox(other, context=zmq_context) as misled:  # expects another server
                        assert not misled.wait_for_peer(0.3)
                    assert inbox.recv(0.5) is None
            with Outbox(Endpoint(url, REMOTE_FRAMES, tmp_path / "keys"), context=zmq_context) as friend:
                assert friend.wait_for_peer(10)
                assert friend.send(b"friend")
                assert inbox.recv(10) == (b"friend", None)
    finally:
        stop_guards()


def test_key_files(tmp_path: Path) -> None:
    server, client = create_keys(tmp_path / "keys")
    assert stat.S_IMODE(server.stat().st_mode) == stat.S_IMODE(client.stat().st_mode) == 0o600
    assert stat.S_IMODE(server.parent.stat().st_mode) == 0o700
    mine, theirs = server_keys(server.parent), client_keys(client.parent)
    assert theirs.server == mine.public
    assert mine.clients == {theirs.public}
    for keys in (mine, theirs):
        assert keys.secret.decode() not in repr(keys)
    before = server.read_bytes()
    with pytest.raises(TransportError, match=r"server\.key: this key exists already"):
        create_keys(tmp_path / "keys")
    assert server.read_bytes() == before


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"public": 1}', b"\xff\xfe", b"[" * 100_000])
def test_damaged_keys(tmp_path: Path, damage: bytes) -> None:
    server, client = create_keys(tmp_path)
    for path, read in ((server, server_keys), (client, client_keys)):
        path.write_bytes(damage)
        with pytest.raises(TransportError, match=str(path)):
            read(tmp_path)


def test_keys_that_cannot_be_used(tmp_path: Path, zmq_context: Context) -> None:
    with pytest.raises(TransportError, match="no such key; run `edge keys create"):
        Inbox(Endpoint("tcp://127.0.0.1:5555", REMOTE_FRAMES, tmp_path), zmq_context)
    with pytest.raises(TransportError, match="no such key"):
        Outbox(Endpoint("tcp://127.0.0.1:5555", REMOTE_FRAMES, tmp_path), context=zmq_context)
    with pytest.raises(TransportError, match="needs keys"):
        Outbox(Endpoint("tcp://127.0.0.1:5555", REMOTE_FRAMES), context=zmq_context)
    server, client = create_keys(tmp_path)
    server.chmod(0o640)
    with pytest.raises(TransportError, match="other users may read this key; run `chmod 600"):
        server_keys(tmp_path)
    text = client.read_text()
    client.write_text(text.replace(client_keys(tmp_path).secret.decode(), "short"))
    with pytest.raises(TransportError, match="not 40 characters of Z85") as caught:
        client_keys(tmp_path)
    assert "short" not in str(caught.value)
    with pytest.raises(TransportError, match="cannot write keys"):
        create_keys(client / "folder")


# --- locks and folders -----------------------------------------------------------------------------------------------


def test_one_live_process_of_a_name(tmp_path: Path) -> None:
    path = tmp_path / "infer.lock"
    with ProcessLock(path):
        with pytest.raises(LineInUse, match=f"process {os.getpid()} runs this already"):
            ProcessLock(path)
        ProcessLock(tmp_path / "alert.lock").release()
    lock = ProcessLock(path)
    lock.release()
    lock.release()


HOLDER = """
import sys
from pathlib import Path
from edge.transport import ProcessLock
lock = ProcessLock(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.read()
"""


def test_a_lock_ends_with_its_process(tmp_path: Path, child: Callable[..., Any]) -> None:
    path = tmp_path / "infer.lock"
    holder = child(HOLDER, path)
    assert holder.line() == "held"
    with pytest.raises(LineInUse, match=f"process {holder.pid} "):
        ProcessLock(path)
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    with ProcessLock(path):
        assert path.read_text() == f"{os.getpid()}\n"


def test_the_runtime_folder_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    ensure_runtime(folder)
    ensure_runtime(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    folder.chmod(0o770)
    with pytest.raises(TransportError, match=f"other users may write here; run `chmod 700 {folder}`"):
        ensure_runtime(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(TransportError, match="cannot make the runtime folder"):
        ensure_runtime(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(TransportError, match="not a folder of this user"):
        ensure_runtime(tmp_path / "link")


def test_the_runtime_folder_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(TransportError, match=r"not a folder of this user; remove it, or set .line. runtime_dir"):
        ensure_runtime(tmp_path)
