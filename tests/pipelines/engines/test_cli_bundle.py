"""`edge bundle`: what it prints, and errors as one line with exit code 1."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from edge.cli_bundle import app
from pipelines.bundle import Bundle


@pytest.fixture
def path(bundles: Callable[..., Bundle], tmp_path: Path) -> Path:
    original = bundles(frame=(80, 96))
    return Path(shutil.copytree(original.path, tmp_path / "tiles", ignore=shutil.ignore_patterns("engines")))


def run(*words: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "160", "TERM": "dumb"})
    return result.exit_code, result.stdout, result.stderr


def test_show(path: Path) -> None:
    code, out, _ = run("show", path)
    assert code == 0
    for words in ("memory_bank", "Mono8 96x80", "tiny", "50.000%", Bundle.open(path).id):
        assert words in out
    code, out, _ = run("show", path, "--json")
    assert json.loads(out)["id"] == Bundle.open(path).id


def test_verify(path: Path) -> None:
    code, out, _ = run("verify", path)
    assert code == 0
    assert out.endswith("fine\n")
    file = path / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"\x00")
    code, out, err = run("verify", path)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {file}: damaged")
    assert err.count("\n") == 1


def test_build(path: Path) -> None:
    pytest.importorskip("openvino", reason="the openvino engine needs pip install 'edge-inspect[openvino]'")
    code, out, _ = run("build", path, "--precision", "fp32")
    assert code == 0
    assert "Parity of openvino (fp32" in out
    assert "built: " in out
    folders = list((path / "engines").iterdir())
    assert [f"key {folder.name}" in out for folder in folders] == [True]
    assert "was built before" in run("build", path, "--precision", "fp32")[1]
    code, out, _ = run("build", path, "--precision", "fp32", "--pixel-format", "RGB8", "--frame-size", "120x90")
    assert code == 0
    assert len(list((path / "engines").iterdir())) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("show", "nothing-here"), "there is no such folder"),
        (("build", "{path}", "--engine", "abacus"), "there is no engine 'abacus'; choose from openvino, torch"),
        (("build", "{path}", "--precision", "int3"), "not int3"),
        (("build", "{path}", "--frame-size", "big"), "such as 2448x2048"),
    ],
)
def test_errors_are_one_line(path: Path, words: tuple[str, ...], said: str) -> None:
    code, _, err = run(*(word.format(path=path) for word in words))
    assert code == 1
    assert said in err
    assert "Traceback" not in err
    assert err.strip().count("\n") == 0


def test_export(path: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="ONNX export needs pip install 'edge-inspect[onnx]'")
    code, out, _ = run("export", path, "--onnx", tmp_path / "m.onnx")
    assert code == 0
    assert "Parity of onnxruntime" in out
    assert (tmp_path / "m.onnx").is_file()
