"""MQTT against Mosquitto with TLS and password; the PLC is played by Mosquitto's own client programs."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("paho.mqtt.client", reason="paho-mqtt is missing: pip install 'edge-inspect[mqtt]'")

from edge.alert.plc.adapter import Inputs, Outputs, Result
from edge.alert.plc.mqtt import MqttAdapter
from edge.errors import PlcError, PlcTimeout
from edge.settings_plc_protocols import MqttAdapterSettings


class Plc:
    """mosquitto_sub brings what we publish, mosquitto_pub sends the answers."""

    def __init__(self, sub: str, pub: str, login: list[str]) -> None:
        self.inputs: dict[str, Any] = asdict(Inputs())
        self.raw: str | None = None  # sent instead of the inputs
        self.outputs: list[dict[str, Any]] = []
        self.changed = threading.Condition()
        topics = ["-t", "line/press/ask", "-t", "line/press/out", "-q", "1", "-F", "%t %p"]
        self._sub = subprocess.Popen([sub, *login, *topics], stdout=subprocess.PIPE, text=True, bufsize=1)
        self._pub = subprocess.Popen(
            [pub, *login, "-t", "line/press/in", "-q", "1", "-l"], stdin=subprocess.PIPE, text=True, bufsize=1
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        assert self._sub.stdout is not None
        assert self._pub.stdin is not None
        for line in self._sub.stdout:
            topic, _, payload = line.partition(" ")
            with self.changed:
                if topic.endswith("/ask"):
                    answer = self.raw or json.dumps({**json.loads(payload), **self.inputs})
                    self._pub.stdin.write(answer + "\n")
                    self._pub.stdin.flush()
                else:
                    self.outputs.append(json.loads(payload))
                self.changed.notify_all()

    def stop(self) -> None:
        for process in (self._sub, self._pub):
            process.kill()
        self._thread.join()
        for process in (self._sub, self._pub):
            process.communicate()


class Rig:
    """The broker and the PLC behind it. What stands still or dies is the broker."""

    def __init__(self, broker: Any, programs: list[str]) -> None:
        self.peer, self.programs = broker, programs
        self.plc: Plc | None = None

    def adapter(self, **changes: Any) -> MqttAdapter:
        settings = {"type": "mqtt", "prefix": "line/press", **self.peer.settings, **changes}
        return MqttAdapter(MqttAdapterSettings(**settings))

    def start(self) -> None:
        if self.plc is not None:
            self.plc.stop()
        self.peer.start(self.peer.port)
        self.plc = Plc(*self.programs, self.peer.login)
        self.behind()

    def behind(self) -> None:
        """Waits until the PLC takes part: until an ask of ours was answered."""
        for _ in range(20):
            adapter = self.adapter()
            try:
                adapter.connect()
            except PlcTimeout:
                continue
            finally:
                adapter.close()
            self.heard(lambda last: last.get("fault") == 7)  # its will
            return
        pytest.fail("the PLC does not answer")

    def heard(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Waits until the newest message on `out` is as wanted."""
        assert self.plc is not None
        with self.plc.changed:
            outputs = self.plc.outputs
            assert self.plc.changed.wait_for(lambda: bool(outputs) and wanted(outputs[-1]), 10), outputs[-3:]
            return outputs[-1]

    def seen(self) -> Outputs:
        """The newest outputs the PLC has. An answered question comes after all that the broker had before it."""
        assert self.plc is not None
        adapter = self.adapter(client_id="onlooker")
        adapter.connect()
        with self.plc.changed:
            full = [one for one in self.plc.outputs if "valid" in one][-1]
        adapter.close()
        return Outputs(**{**full, "result": Result(full["result"])})

    def give(self, inputs: Inputs) -> None:
        assert self.plc is not None
        self.plc.inputs = asdict(inputs)


@pytest.fixture(scope="module")
def rig(broker: Any, program: Callable[[str], str]) -> Iterator[Rig]:
    found = Rig(broker, [program("mosquitto_sub"), program("mosquitto_pub")])
    found.start()
    yield found
    if found.plc is not None:
        found.plc.stop()


def test_every_field_arrives(rig: Rig, behaviour: Any) -> None:
    behaviour.every_field_arrives(rig)


def test_killed_broker_is_an_error_and_a_new_one_is_found(rig: Rig, behaviour: Any) -> None:
    behaviour.loss_and_recovery(rig)


def test_frozen_broker_delivers_nothing_when_it_thaws(rig: Rig, behaviour: Any) -> None:
    behaviour.freeze_and_thaw(rig)


@pytest.mark.parametrize("orderly", [True, False])
def test_broker_tells_the_plc_when_we_are_gone(rig: Rig, orderly: bool) -> None:
    """Whether we leave in order or the connection breaks: `ready` is false."""
    adapter = rig.adapter()
    adapter.connect()
    adapter.exchange(Outputs(ready=True, valid=9))
    rig.heard(lambda last: last.get("valid") == 9)
    if orderly:
        adapter.close()
    else:
        adapter._broker.drop()
    assert rig.heard(lambda last: not last["ready"]) == {"ready": False, "fault": 7}


def test_plc_that_does_not_answer_is_a_timeout(rig: Rig) -> None:
    """The broker lives but nobody is behind it."""
    adapter = rig.adapter(prefix="line/other", timeout_ms=100)
    with pytest.raises(PlcTimeout, match="no answer to line/other/ask from the PLC on line/other/in"):
        adapter.connect()


def test_answer_to_an_older_question_is_not_taken(rig: Rig) -> None:
    assert rig.plc is not None
    adapter = rig.adapter(timeout_ms=300)
    adapter.connect()
    rig.plc.raw = json.dumps({"ask": adapter._ask, "ack": 77})
    try:
        with pytest.raises(PlcTimeout):
            adapter.exchange(Outputs())
    finally:
        rig.plc.raw = None
        adapter.close()


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        ("hello", "b'hello' is not JSON"),
        ("[1]", "is not a JSON object"),
        ('{"ask": %d, "ack": 70000}', "ack = 70000 is not a whole number from 0 to 65535"),
        ('{"ask": %d, "part": "12"}', "part = '12' is not a whole number from 0 to 4294967295"),
        ('{"ask": %d, "run": "yes"}', "run = 'yes' is not true or false"),
    ],
)
def test_nonsense_from_the_plc_is_named(rig: Rig, raw: str, said: str) -> None:
    assert rig.plc is not None
    adapter = rig.adapter()
    adapter.connect()
    rig.plc.raw = raw.replace("%d", str(adapter._ask % 0xFFFF + 1))
    try:
        with pytest.raises(PlcError) as nonsense:
            adapter.exchange(Outputs())
    finally:
        rig.plc.raw = None
        adapter.close()
    assert said in str(nonsense.value)
    assert "line/press/in" in str(nonsense.value)


def test_wrong_password_is_refused_and_not_shown(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRONG", "swordfish")
    with pytest.raises(
        PlcError, match=r"the broker refuses client .*: Not authorized; check user, password"
    ) as refused:
        rig.adapter(password_file=None, password_env="WRONG").connect()
    assert "swordfish" not in str(refused.value)


def test_unknown_broker_is_not_trusted(rig: Rig, tmp_path: Path, certificates: Path) -> None:
    """The server's own certificate did not sign itself."""
    with pytest.raises(PlcError, match=r"the broker's certificate is not trusted: .*set ca_file"):
        rig.adapter(ca_file=None).connect()


def test_password_file_that_others_may_read_is_refused(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("let me in")
    (tmp_path / "password").chmod(0o644)
    with pytest.raises(PlcError, match=r"password_file: other users may read .*chmod 600"):
        rig.adapter(password_file=tmp_path / "password").connect()
    with pytest.raises(PlcError, match="the environment variable NO_SUCH is not set"):
        rig.adapter(password_file=None, password_env="NO_SUCH").connect()
