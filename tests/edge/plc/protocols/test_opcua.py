"""OPC UA against node-opcua, which speaks SignAndEncrypt only, in a process of its own."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

pytest.importorskip("asyncua", reason="asyncua is missing: pip install 'edge-inspect[opcua]'")

from edge.alert.plc.adapter import Inputs, Outputs, Result
from edge.alert.plc.certificates import application_uri, certificate_der, create_certificate, fingerprint
from edge.alert.plc.opcua import OpcuaAdapter
from edge.cli_plc import app
from edge.errors import PlcError
from edge.settings_plc_protocols import OpcuaAdapterSettings

PASSWORD = "let me in"


class Rig:
    """node-opcua's server; it trusts our certificate, we trust its."""

    def __init__(self, peer: Any, port: int, folder: Path, own: tuple[Path, Path]) -> None:
        self.peer, self.port, self.folder, self.own = peer, port, folder, own
        (folder / "password").write_text(PASSWORD + "\n", encoding="utf-8")
        (folder / "password").chmod(0o600)

    def adapter(self, **changes: Any) -> OpcuaAdapter:
        known = {
            "type": "opcua",
            "url": f"opc.tcp://127.0.0.1:{self.port}",
            "timeout_ms": 1000,
            "certificate_file": self.own[0],
            "key_file": self.own[1],
            "server_certificates": [self.peer.greeting.split()[2]],
            "user": "edge",
            "password_file": self.folder / "password",
        }
        return OpcuaAdapter(OpcuaAdapterSettings(**{**known, **changes}))

    def start(self) -> None:
        self.peer.start()

    def seen(self) -> Outputs:
        values = {f.name: json.loads(self.peer.ask(f"get Out.{f.name}")) for f in fields(Outputs)}
        return Outputs(**{**values, "result": Result(values["result"])})

    def give(self, inputs: Inputs) -> None:
        for field in fields(Inputs):
            self.peer.ask(f"set In.{field.name} {json.dumps(getattr(inputs, field.name))}")


@pytest.fixture(scope="module")
def rig(
    peer: Callable[..., Any],
    peer_node: tuple[str, Path],
    free_port: Callable[[], int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Rig:
    node, modules = peer_node
    folder = tmp_path_factory.mktemp("opcua")
    own = create_certificate(folder / "own", "box")
    port = free_port()
    script = Path(__file__).with_name("opcua_server.js")
    server = peer([node, str(script), str(port), str(folder / "server"), str(own[0])], "ready", modules)
    found = Rig(server, port, folder, own)
    found.start()
    return found


def test_every_field_arrives(rig: Rig, behaviour: Any) -> None:
    behaviour.every_field_arrives(rig)


def test_killed_server_is_an_error_and_a_new_one_is_found(rig: Rig, behaviour: Any) -> None:
    behaviour.loss_and_recovery(rig)


def test_frozen_server_applies_nothing_when_it_thaws(rig: Rig, behaviour: Any) -> None:
    behaviour.freeze_and_thaw(rig)


def test_wrong_password_is_refused_and_not_shown(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRONG", "swordfish")
    with pytest.raises(PlcError, match="check user and password") as refused:
        rig.adapter(password_file=None, password_env="WRONG").connect()
    assert "swordfish" not in str(refused.value)


def test_unknown_server_is_named_by_its_fingerprint(rig: Rig, tmp_path: Path) -> None:
    """A server that shows another certificate than the trusted one gets no password."""
    other = create_certificate(tmp_path)[0]
    real = fingerprint(certificate_der(Path(rig.peer.greeting.split()[2]), "test"))
    with pytest.raises(PlcError, match=f"not among server_certificates; it is {real}"):
        rig.adapter(server_certificates=[other]).connect()


def test_server_that_does_not_trust_us_says_so(rig: Rig, tmp_path: Path) -> None:
    certificate, key = create_certificate(tmp_path, "stranger")
    with pytest.raises(PlcError, match=r"^opcua opc\.tcp://127\.0\.0\.1:\d+: cannot connect: .*"):
        rig.adapter(certificate_file=certificate, key_file=key).connect()


def test_policy_that_the_server_lacks_is_named(rig: Rig) -> None:
    with pytest.raises(PlcError, match="does not offer Aes256_Sha256_RsaPss with SignAndEncrypt, but Basic256Sha256"):
        rig.adapter(security="Aes256_Sha256_RsaPss").connect()


def test_missing_node_is_named(rig: Rig) -> None:
    with pytest.raises(
        PlcError, match=r"cannot read valid, node ns=2;s=Nowhere: BadNodeIdUnknown; correct the node id"
    ):
        rig.adapter(outputs={"valid": "ns=2;s=Nowhere"}).connect()
    with pytest.raises(PlcError, match=r"cannot read ack, node ns=2;s=Nowhere: BadNodeIdUnknown"):
        rig.adapter(inputs={"ack": "ns=2;s=Nowhere"}).connect()


def test_node_id_that_is_none_is_named(rig: Rig) -> None:
    with pytest.raises(PlcError, match="'i=five' is no node id, such as"):
        rig.adapter(outputs={"valid": "i=five"}).connect()


def test_read_only_node_is_found_before_anything_is_written(rig: Rig) -> None:
    with pytest.raises(PlcError, match="ready, node i=2259: this user may not write it"):
        rig.adapter(outputs={"ready": "i=2259"}).connect()  # the server's own state


def test_refused_write_names_the_node(rig: Rig) -> None:
    adapter = rig.adapter()
    adapter.connect()
    rig.peer.ask("refuse Out.part")
    try:
        with pytest.raises(PlcError, match=r"cannot write part, node ns=2;s=EdgeInspect\.Out\.part: BadOutOfRange"):
            adapter.exchange(Outputs(part=5))
    finally:
        rig.peer.ask("accept Out.part")
        adapter.close()


def test_certificate_has_what_servers_ask_for(tmp_path: Path) -> None:
    certificate, key = create_certificate(tmp_path, "box")
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert application_uri(certificate_der(certificate, "test"), "test") == "urn:box:edge-inspect"
    with pytest.raises(PlcError, match="exists already"):
        create_certificate(tmp_path, "box")
    key.chmod(0o644)
    settings = {"certificate_file": certificate, "key_file": key, "server_certificates": [certificate]}
    adapter = OpcuaAdapter(OpcuaAdapterSettings(type="opcua", url="opc.tcp://127.0.0.1:1", **settings))
    with pytest.raises(PlcError, match="key_file: other users may read"):
        adapter.connect()


def test_command_makes_the_certificate_and_shows_its_fingerprint(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["certificate", str(tmp_path / "keys"), "--host", "box"])
    assert done.exit_code == 0, done.output
    certificate = certificate_der(tmp_path / "keys" / "opcua-certificate.der", "test")
    assert f"SHA-256 {fingerprint(certificate)}" in done.output


def test_garbage_is_no_certificate(tmp_path: Path) -> None:
    (tmp_path / "server.der").write_bytes(b"\x30\x82garbage")
    with pytest.raises(PlcError, match="holds no certificate"):
        certificate_der(tmp_path / "server.der", "opcua")
