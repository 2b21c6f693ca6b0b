"""S7 against the C server of Snap7, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("snap7", reason="python-snap7 is missing: pip install 'edge-inspect[s7]'")

from edge.alert.plc.adapter import Inputs, Outputs
from edge.alert.plc.blocks import pack_inputs, unpack_outputs
from edge.alert.plc.s7 import S7Adapter
from edge.errors import PlcError
from edge.settings_plc_protocols import S7AdapterSettings


class Rig:
    """Snap7's server with DB1 for outputs and DB2 for inputs."""

    def __init__(self, peer: Any, port: int) -> None:
        self.peer, self.port = peer, port

    def adapter(self, **changes: Any) -> S7Adapter:
        known = {"type": "s7", "host": "127.0.0.1", "port": self.port, "outputs_db": 1, "inputs_db": 2}
        return S7Adapter(S7AdapterSettings(**{**known, "timeout_ms": 1000, **changes}))

    def start(self) -> None:
        self.peer.start(self.port)

    def seen(self) -> Outputs:
        return unpack_outputs(bytes.fromhex(self.peer.ask("get")))

    def give(self, inputs: Inputs) -> None:
        self.peer.ask(f"set {pack_inputs(inputs).hex()}")


@pytest.fixture(scope="module")
def rig(peer: Callable[..., Any], peer_python: str, free_port: Callable[[], int]) -> Rig:
    port = free_port()
    server = peer([peer_python, str(Path(__file__).with_name("s7_server.py")), str(port)], "ready")
    found = Rig(server, port)
    found.start()
    return found


def test_every_field_arrives(rig: Rig, behaviour: Any) -> None:
    behaviour.every_field_arrives(rig)


def test_killed_server_is_an_error_and_a_new_one_is_found(rig: Rig, behaviour: Any) -> None:
    behaviour.loss_and_recovery(rig)


def test_frozen_server_applies_nothing_when_it_thaws(rig: Rig, behaviour: Any) -> None:
    behaviour.freeze_and_thaw(rig)


def test_block_that_does_not_exist_is_named(rig: Rig) -> None:
    adapter = rig.adapter(inputs_db=77)
    with pytest.raises(PlcError, match=r"^s7 127\.0\.0\.1:\d+: cannot read 14 bytes from DB77\.DBB0: .*PUT/GET"):
        adapter.connect()
    adapter.close()
    adapter = rig.adapter(outputs_db=77)
    adapter.connect()
    with pytest.raises(PlcError, match=r"cannot write 16 bytes to DB77\.DBB0"):
        adapter.exchange(Outputs())
    adapter.close()


def test_offsets_place_the_blocks(rig: Rig) -> None:
    rig.give(Inputs(ack=0x0102))
    adapter = rig.adapter(outputs_offset=16, inputs_offset=2)
    adapter.connect()
    before = rig.seen()
    # From byte 2 on, what was `ack` stands where the flags are expected: bit 0 of 0x0102 is off.
    assert adapter.exchange(Outputs(ready=True, part=5)).run is False
    assert rig.seen() == before, "the first 16 bytes are not ours now"
    adapter.close()
