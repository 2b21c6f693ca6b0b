"""EtherNet/IP against the server of cpppo, in a process of its own; its client is the independent view of the tags."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("pylogix", reason="pylogix is missing: pip install 'edge-inspect[ethernetip]'")

from edge.alert.plc.adapter import Inputs, Outputs, Result
from edge.alert.plc.ethernetip import EthernetIpAdapter
from edge.errors import PlcError
from edge.settings_plc_protocols import EthernetIpAdapterSettings


class Rig:
    """cpppo's server with the tags EdgeOut and EdgeIn, and its command line client."""

    def __init__(self, peer: Any, python: str, port: int) -> None:
        self.peer, self.python, self.port = peer, python, port

    def adapter(self, **changes: Any) -> EthernetIpAdapter:
        known = {"type": "ethernetip", "host": "127.0.0.1", "port": self.port, "timeout_ms": 1000}
        return EthernetIpAdapter(EthernetIpAdapterSettings(**{**known, **changes}))

    def start(self) -> None:
        self.peer.start(self.port)

    def client(self, operation: str) -> str:
        command = [self.python, "-m", "cpppo.server.enip.client", "--print", "-a", f"127.0.0.1:{self.port}", operation]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout

    def dints(self, tag: str, last: int) -> list[int]:
        answer = re.search(r"== \[(.*?)\]", self.client(f"{tag}[0-{last}]"))
        assert answer is not None
        return [int(value) for value in answer[1].split(",")]

    def seen(self) -> Outputs:
        flags, heartbeat, fault, trigger, part, result, valid = self.dints("EdgeOut", 6)
        assert bool(flags & 4) == bool(valid & 1), "the toggle"
        return Outputs(
            bool(flags & 1), heartbeat, fault, part & 0xFFFF_FFFF, Result(result), valid, bool(flags & 2), trigger
        )

    def give(self, inputs: Inputs) -> None:
        part = inputs.part - (1 << 32) if inputs.part >> 31 else inputs.part
        values = [int(inputs.run), inputs.ack, inputs.parts, part, inputs.encoder]
        self.client(f"EdgeIn[0-4]=(DINT){','.join(map(str, values))}")


@pytest.fixture(scope="module")
def rig(peer: Callable[..., Any], peer_python: str, free_port: Callable[[], int]) -> Rig:
    port = free_port()
    server = [peer_python, "-m", "cpppo.server.enip", "--no-udp", "-a", f"127.0.0.1:{port}"]
    found = Rig(
        peer([*server, "EdgeOut=DINT[7]", "EdgeIn=DINT[5]", "Short=DINT[2]", "Text=REAL[5]"]), peer_python, port
    )
    found.start()
    return found


def test_every_field_arrives(rig: Rig, behaviour: Any) -> None:
    behaviour.every_field_arrives(rig)


def test_killed_server_is_an_error_and_a_new_one_is_found(rig: Rig, behaviour: Any) -> None:
    behaviour.loss_and_recovery(rig)


def test_frozen_server_applies_nothing_when_it_thaws(rig: Rig, behaviour: Any) -> None:
    behaviour.freeze_and_thaw(rig)


@pytest.mark.parametrize("tag", ["Missing", "Short"])
def test_wrong_tag_is_named_when_it_is_read(rig: Rig, tag: str) -> None:
    adapter = rig.adapter(inputs_tag=tag)
    with pytest.raises(PlcError, match=rf"^ethernetip 127\.0\.0\.1:\d+: .*{tag}"):
        adapter.connect()
    adapter.close()


def test_wrong_tag_is_named_when_it_is_written(rig: Rig) -> None:
    adapter = rig.adapter(outputs_tag="Missing")
    adapter.connect()
    with pytest.raises(PlcError, match=r"cannot write Missing: .*external access"):
        adapter.exchange(Outputs())
    adapter.close()


def test_acknowledgement_out_of_range_is_named(rig: Rig) -> None:
    rig.client("EdgeIn[0-4]=(DINT)0,70000,0,0,0")
    with pytest.raises(PlcError, match=r"EdgeIn\[1\] \(ack\) = 70000 is not from 0 to 65535"):
        rig.adapter().connect()
    rig.client("EdgeIn[0-4]=(DINT)0,0,0,0,0")


@pytest.mark.parametrize(
    "answer", [b"", b"\x65\x00\x64\x00" + bytes(20), b"\x65\x00\x04\x00" + bytes(24), b"HTTP/1.1 400\r\n\r\n"]
)
def test_peer_that_is_no_controller_is_an_error(answer: bytes) -> None:
    """The race: a peer that closes half-way through a message. The library's own reception then spins for ever."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.recv(1024)
                        connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        settings = {"type": "ethernetip", "host": "127.0.0.1", "port": server.getsockname()[1]}
        adapter = EthernetIpAdapter(EthernetIpAdapterSettings(**settings))
        with pytest.raises(
            PlcError, match=r"^ethernetip 127\.0\.0\.1:\d+: cannot connect: .*check the address and slot"
        ):
            adapter.connect()
        adapter.close()
        server.shutdown(socket.SHUT_RDWR)
