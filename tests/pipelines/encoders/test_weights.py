"""The catalogue, the store and the download, against a real server on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from edge import cli_weights
from pipelines import weights_catalogue as weights
from pipelines.encoders import CONFIGS, from_checkpoint
from pipelines.errors import WeightsError
from pipelines.weights_catalogue import CATALOGUE, Published
from pipelines.weights_download import DownloadError, Refused, Source, Unreachable, download


@dataclass
class Server:
    """An HTTP server with one file, and ways to misbehave."""

    body: bytes = b""
    tag: str | None = '"first"'
    status: int | None = None
    cut_after: list[int] = field(default_factory=list)
    """Bytes after which the next answers break off, one entry an answer."""
    send_length: bool = True
    ranges: bool = True
    redirect: str | None = None
    seen: list[dict[str, str]] = field(default_factory=list)
    url: str = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.seen.append({key.lower(): value for key, value in handler.headers.items()})
        if self.redirect is not None:
            handler.send_response(302)
            handler.send_header("Location", self.redirect)
            handler.end_headers()
            return
        if self.status is not None:
            handler.send_error(self.status)
            return
        start = 0
        wanted = handler.headers.get("Range")
        if self.ranges and wanted and handler.headers.get("If-Range") == self.tag:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(self.body):
                handler.send_response(416)
                handler.send_header("Content-Range", f"bytes */{len(self.body)}")
                handler.send_header("Content-Length", "0")
                handler.end_headers()
                return
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {start}-{len(self.body) - 1}/{len(self.body)}")
        else:
            handler.send_response(200)
        if self.tag is not None:
            handler.send_header("ETag", self.tag)
        if self.send_length:
            handler.send_header("Content-Length", str(len(self.body) - start))
        handler.end_headers()
        end = start + self.cut_after.pop(0) if self.cut_after else len(self.body)
        handler.wfile.write(self.body[start:end])
        handler.close_connection = True


def serve(server: Server, context: ssl.SSLContext | None = None) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self)

        def log_message(self, *args: Any) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if context is not None:
        http.socket = context.wrap_socket(http.socket, server_side=True)
    http.handle_error = lambda *_: None  # type: ignore[method-assign] # clients that hang up are the point
    threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    server.url = f"{'http' if context is None else 'https'}://127.0.0.1:{http.server_address[1]}/file"
    return http


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_INSPECT_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    it = Server(body=os.urandom(300_000))
    http = serve(it)
    yield it
    http.shutdown()
    http.server_close()


@pytest.fixture
def official(procedural: SimpleNamespace, tmp_path: Path) -> Callable[[str], Path]:
    """A file with random weights of a whole named encoder, as its owner would publish it."""

    def make(name: str) -> Path:
        config = CONFIGS[name]
        shapes = procedural.shapes(
            config.family, width=config.width, depth=config.depth, patch=config.patch, grid=config.grid or 0
        )
        path = tmp_path / f"{name}_official.pth"
        torch.save({key: torch.full(shape, 0.01) for key, shape in shapes.items() if key != "rope_embed.periods"}, path)
        return path

    return make


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_file_comes_whole_with_progress_and_nothing_beside_it(server: Server, tmp_path: Path) -> None:
    path, calls = tmp_path / "new" / "weights.bin", []
    download(Source(server.url, digest(server.body)), path, lambda *args: calls.append(args))
    assert path.read_bytes() == server.body
    assert [file.name for file in path.parent.iterdir()] == ["weights.bin"]
    assert calls[0] == (0, 300_000)
    assert calls[-1] == (300_000, 300_000)


def test_interruptions_within_a_call_go_on_where_they_stopped(server: Server, tmp_path: Path) -> None:
    server.cut_after = [100_000, 50_000, 0]
    path = tmp_path / "weights.bin"
    download(Source(server.url, digest(server.body)), path, pause_s=0)
    assert path.read_bytes() == server.body
    assert [seen.get("range") for seen in server.seen] == [None, "bytes=100000-", "bytes=150000-", "bytes=150000-"]


def test_a_later_call_goes_on_where_the_first_gave_up(server: Server, tmp_path: Path) -> None:
    server.cut_after = [120_000, 0, 0, 0, 0]
    path = tmp_path / "weights.bin"
    with pytest.raises(Unreachable, match=r"0\.1 MB have come and are kept"):
        download(Source(server.url, digest(server.body)), path, pause_s=0)
    assert not path.exists()
    server.cut_after, server.seen, calls = [], [], []
    download(Source(server.url, digest(server.body)), path, lambda *args: calls.append(args))
    assert path.read_bytes() == server.body
    assert [seen.get("range") for seen in server.seen] == ["bytes=120000-"]
    assert calls[0] == (120_000, 300_000)


@pytest.mark.parametrize("change", ["tag", "no ranges", "no tag"])
def test_pieces_of_two_different_files_are_never_joined(change: str, server: Server, tmp_path: Path) -> None:
    """The server's file changes between two tries, or the server cannot tell: the whole file is fetched anew."""
    path = tmp_path / "weights.bin"
    if change == "no tag":
        server.tag = None
    server.cut_after = [120_000, 0, 0, 0, 0]
    with pytest.raises(Unreachable):
        download(Source(server.url), path, pause_s=0)
    server.cut_after, server.seen = [], []
    server.body = os.urandom(200_000)
    if change == "tag":
        server.tag = '"second"'
    else:
        server.ranges = False
    download(Source(server.url, digest(server.body)), path, pause_s=0)
    assert path.read_bytes() == server.body


def test_a_part_that_is_already_the_whole_file(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    (tmp_path / "weights.bin.part").write_bytes(server.body)
    (tmp_path / "weights.bin.part.json").write_text(json.dumps({"url": server.url, "tag": server.tag}))
    download(Source(server.url, digest(server.body)), path)
    assert path.read_bytes() == server.body
    (tmp_path / "weights.bin.part").write_bytes(server.body + b"too much")
    (tmp_path / "weights.bin.part.json").write_text(json.dumps({"url": server.url, "tag": server.tag}))
    download(Source(server.url, digest(server.body)), path, pause_s=0)
    assert path.read_bytes() == server.body


def test_wrong_checksum_is_thrown_away(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    with pytest.raises(DownloadError, match="its owner's file has 1234abcd; it was thrown away"):
        download(Source(server.url, "1234abcd"), path)
    assert list(tmp_path.glob("weights*")) == []
    download(Source(server.url, digest(server.body)[:8]), path)  # the first digits are enough
    assert path.exists()


def test_file_that_cannot_be_it(server: Server, tmp_path: Path) -> None:
    for send_length in (True, False):
        server.send_length = send_length
        with pytest.raises(DownloadError, match="the file it should be is smaller"):
            download(Source(server.url, most_bytes=100_000), tmp_path / "weights.bin")
    assert not (tmp_path / "weights.bin").exists()


@pytest.mark.parametrize(("status", "kind"), [(404, Refused), (401, Refused), (503, Unreachable)])
def test_answers_that_are_no_file(status: int, kind: type[DownloadError], server: Server, tmp_path: Path) -> None:
    server.status = status
    with pytest.raises(kind, match=str(status)):
        download(Source(server.url), tmp_path / "weights.bin", pause_s=0)
    assert len(server.seen) == (1 if kind is Refused else 4)
    assert list(tmp_path.glob("weights*")) == []


def test_only_https_and_no_way_round_it(server: Server, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="only HTTPS"):
        download(Source("http://example.invalid/file"), tmp_path / "weights.bin")
    with pytest.raises(DownloadError, match="only HTTPS"):
        download(Source("file:///etc/hostname"), tmp_path / "weights.bin")
    server.redirect = "http://example.invalid/file"
    with pytest.raises(DownloadError, match="only HTTPS"):
        download(Source(server.url), tmp_path / "weights.bin")


def test_token_is_not_sent_on(server: Server, tmp_path: Path) -> None:
    """Owners redirect to storage of others, who must not see the token."""
    front = Server(redirect=server.url)
    http = serve(front)
    download(Source(front.url), tmp_path / "weights.bin", token="secret")
    http.shutdown()
    http.server_close()
    assert front.seen[0]["authorization"] == "Bearer secret"
    assert "authorization" not in server.seen[0]
    assert (tmp_path / "weights.bin").read_bytes() == server.body


def test_two_downloads_of_one_file(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    found: list[Exception] = []

    def meanwhile(done: int, total: int | None) -> None:
        if not found:
            with pytest.raises(DownloadError, match="another process is fetching") as error:
                download(Source(server.url), path)
            found.append(error.value)

    download(Source(server.url), path, meanwhile)
    assert found
    assert path.read_bytes() == server.body


def test_disk_without_room(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=100, f_frsize=4096))
    with pytest.raises(DownloadError, match=r"0 MB free, 1 MB needed.*EDGE_INSPECT_DATA_HOME"):
        download(Source(server.url), tmp_path / "weights.bin")
    assert list(tmp_path.glob("weights.bin")) == []


def test_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="cannot be written"):
        download(Source(server.url), tmp_path / "file" / "weights.bin")


def test_https_with_a_certificate_to_trust_and_one_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed: no certificate to test HTTPS with")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=127.0.0.1 -addext subjectAltName=IP:127.0.0.1"
    )
    subprocess.run([*command.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = Server(body=b"weights")
    http = serve(server, context)
    try:
        with pytest.raises(Unreachable, match="certificate"):
            download(Source(server.url), tmp_path / "weights.bin")
        assert server.seen == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        download(Source(server.url, digest(server.body)), tmp_path / "weights.bin")
    finally:
        http.shutdown()
        http.server_close()
    assert (tmp_path / "weights.bin").read_bytes() == b"weights"


def test_catalogue_is_of_encoders_that_exist() -> None:
    assert set(CATALOGUE) | {weights.SHIPPED} == set(CONFIGS)
    assert len({entry.file for entry in CATALOGUE.values()}) == len(CATALOGUE)
    for name, entry in CATALOGUE.items():
        assert entry.name == name
        assert entry.url.startswith("https://")
        assert entry.sha256 is None or set(entry.sha256) <= set("0123456789abcdef")
        assert entry.gated == name.startswith("dinov3")
        with torch.device("meta"):
            from pipelines.encoders import Encoder

            size = 4e-6 * sum(parameter.numel() for parameter in Encoder(CONFIGS[name]).parameters())
        if CONFIGS[name].family != "clip":  # those files hold the text encoder as well
            assert entry.megabytes == pytest.approx(size, rel=0.01)


def test_pull_fetches_converts_and_tidies_up(server: Server, official: Callable[[str], Path]) -> None:
    server.body = official("dino_vits16").read_bytes()
    entry = replace(CATALOGUE["dino_vits16"], url=server.url, sha256=digest(server.body))
    server.cut_after = [1_000_000]
    path = weights.pull("dino_vits16", catalogue={entry.name: entry}, pause_s=0)
    assert path == weights.stored_path("dino_vits16")
    assert weights.stored() == {"dino_vits16": path}
    assert list(weights.carried_path(entry).parent.iterdir()) == []
    encoder = weights.open_encoder("dino_vits16")
    assert encoder.config == CONFIGS["dino_vits16"]
    assert float(encoder.cls_token.mean()) == pytest.approx(0.01)


def test_pull_without_a_network_says_what_to_carry_where(official: Callable[[str], Path]) -> None:
    entry = replace(CATALOGUE["dino_vits16"], url="https://127.0.0.1:9/dino_deitsmall16_pretrain.pth")
    catalogue = {entry.name: entry}
    with pytest.raises(Unreachable) as error:
        weights.pull("dino_vits16", catalogue=catalogue)
    target = weights.carried_path(entry)
    for words in (entry.url, "about 87 MB", str(target), "edge weights pull dino_vits16"):
        assert words in str(error.value)
    shutil.copy(official("dino_vits16"), target)  # the folder is there already
    assert weights.pull("dino_vits16", catalogue=catalogue).is_file()
    assert not target.exists()


def test_pull_of_a_gated_file_says_what_its_owner_demands(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server.status = 401
    entry = replace(CATALOGUE["dinov3_vits16"], url=server.url)
    with pytest.raises(Refused, match=r"accept the DINOv3 License .*set HF_TOKEN to a token"):
        weights.pull("dinov3_vits16", catalogue={entry.name: entry})
    monkeypatch.setenv("HF_TOKEN", "mine")
    with pytest.raises(Refused, match="was not accepted"):
        weights.pull("dinov3_vits16", catalogue={entry.name: entry})
    assert server.seen[-1]["authorization"] == "Bearer mine"
    free = replace(CATALOGUE["dino_vits16"], url=server.url)
    with pytest.raises(Refused, match="may have moved it"):
        weights.pull("dino_vits16", catalogue={free.name: free})
    assert "authorization" not in server.seen[-1]  # nobody gets a token who does not ask for one


def test_pull_of_what_is_not_there() -> None:
    with pytest.raises(WeightsError, match="part of the package"):
        weights.pull("compact")
    with pytest.raises(WeightsError, match="there are dino_vits16"):
        weights.pull("dino_vits32")


def test_pull_of_another_encoders_file(server: Server, official: Callable[[str], Path]) -> None:
    server.body = official("dino_vits16").read_bytes()
    entry = Published("dino_vits8", "x.pth", server.url, 87, "Apache-2.0", "https://example.invalid")
    with pytest.raises(WeightsError, match="not the weights of dino_vits8"):
        weights.pull("dino_vits8", catalogue={entry.name: entry})
    assert weights.stored() == {}


def test_add_checks_official_names(official: Callable[[str], Path], tmp_path: Path) -> None:
    file = tmp_path / "dinov2_vits14_pretrain.pth"
    shutil.copy(official("dino_vits16"), file)
    with pytest.raises(WeightsError, match=r"the official file of this name has b938bf1b.*dinov2"):
        weights.add(file)
    assert weights.add(official("dino_vits16"))[0] == "dino_vits16"
    with pytest.raises(WeightsError, match="not the weights of dino_vitb16"):
        weights.add(official("dino_vits16"), name="dino_vitb16")


def test_add_of_an_encoder_without_a_name(procedural: SimpleNamespace, tmp_path: Path) -> None:
    state = procedural.weights(procedural.shapes("dinov2", patch=14, grid=5))
    save_file(state, tmp_path / "mine.safetensors")
    name, path = weights.add(tmp_path / "mine.safetensors")
    assert name == "dinov2_128x2_patch14"
    images = torch.randn(1, 3, 42, 56)
    assert torch.equal(weights.open_encoder(name).features(images), from_checkpoint(state).features(images))
    assert torch.equal(weights.open_encoder(path).features(images), from_checkpoint(state).features(images))


def test_open_encoder_says_how_to_get_it(tmp_path: Path) -> None:
    assert weights.open_encoder("compact").config.name == "compact"
    with pytest.raises(WeightsError, match="edge weights pull dinov2_vitb14"):
        weights.open_encoder("dinov2_vitb14")
    with pytest.raises(WeightsError, match=r"neither a file nor an encoder; there are compact, dino_vits16"):
        weights.open_encoder("dinov9")
    with pytest.raises(WeightsError, match="no such file"):
        weights.open_encoder(tmp_path / "dinov9.pth")


def test_command_line(official: Callable[[str], Path], tmp_path: Path) -> None:
    runner = CliRunner()
    listed = runner.invoke(cli_weights.app, ["list", "--json"])
    assert listed.exit_code == 0
    rows = {row["name"]: row for row in json.loads(listed.stdout)}
    assert rows["compact"]["here"]
    assert not rows["dino_vits16"]["here"]
    assert rows["dinov3_vitb16"]["token_needed"]
    added = runner.invoke(cli_weights.app, ["add", str(official("dino_vits16"))])
    assert added.exit_code == 0
    assert "dino_vits16: every key, shape and number fits" in added.stdout
    assert "yes" in next(
        line for line in runner.invoke(cli_weights.app, ["list"]).stdout.splitlines() if "dino_vits16 " in line
    )
    for command in (["add", str(tmp_path / "none.pth")], ["pull", "dino_vits32"]):
        failed = runner.invoke(cli_weights.app, command)
        assert failed.exit_code == 1
        assert failed.stderr.startswith("error: ")
        assert "Traceback" not in failed.output
