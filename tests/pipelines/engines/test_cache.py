"""The engine cache: found again, keyed by what matters, rebuilt when damaged, kept elsewhere when it must be."""

import logging
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import engines
from pipelines.bundle import Bundle
from pipelines.engines import EngineOptions, FrameSpec, cache
from pipelines.errors import EngineError
from pipelines.images import PixelFormat
from pipelines.parity import TOLERANCES, Tolerance

pytest.importorskip("openvino", reason="the openvino engine needs pip install 'edge-inspect[openvino]'")


@pytest.fixture
def bundle(bundles: Callable[..., Bundle], tmp_path: Path) -> Bundle:
    """A copy without built engines."""
    original = bundles(frame=(80, 96))
    return Bundle.open(shutil.copytree(original.path, tmp_path / "b", ignore=shutil.ignore_patterns("engines")))


def test_built_once_and_then_loaded_without_torch(bundle: Bundle) -> None:
    stages: list[str] = []
    folder = engines.build(bundle, "openvino", lambda what, _: stages.append(what))
    assert folder.parent == bundle.path / "engines"
    assert "convert to OpenVINO" in stages
    again = engines.prepare(bundle, "openvino")
    again.engine.close()
    assert (again.built, again.folder) == (False, folder)
    code = (
        "import sys; from pipelines.bundle import Bundle; from pipelines import engines; "
        "e = engines.load(Bundle.open(sys.argv[1]), ('openvino',)); e.warm(); print(e.name, 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(bundle.path)], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["openvino", "False"]
    assert run.stderr == ""


def test_bundle_id_does_not_change(bundle: Bundle) -> None:
    engines.build(bundle, "openvino")
    assert Bundle.open(bundle.path).id == bundle.id


def test_damaged_engine_is_built_again_with_a_warning(bundle: Bundle, caplog: pytest.LogCaptureFixture) -> None:
    folder = engines.build(bundle, "openvino")
    model = folder / "model.bin"
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        prepared = engines.prepare(bundle, "openvino")
    prepared.engine.close()
    assert prepared.built
    assert prepared.report.passed
    assert "model.bin differs from what was built" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", '{"key": {}}', None])
def test_damaged_key_is_no_engine(bundle: Bundle, text: str | None, caplog: pytest.LogCaptureFixture) -> None:
    key = _key(bundle)
    folder = bundle.path / "engines" / key.name
    folder.mkdir(parents=True)
    if text is not None:
        (folder / cache.KEY).write_text(text)
    assert cache.find(bundle, key) is None
    assert "is damaged" in caplog.text
    assert not folder.exists()


def test_failed_build_leaves_nothing(bundle: Bundle) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("")
        raise EngineError("the builder gave up")

    with pytest.raises(EngineError, match="gave up"):
        cache.store(bundle, _key(bundle), build)
    assert list((bundle.path / "engines").iterdir()) == []


def test_cache_folder_by_environment(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_ENGINE_CACHE", str(tmp_path / "elsewhere"))
    folder = engines.build(bundle, "openvino")
    assert folder.parent == tmp_path / "elsewhere" / bundle.id[:16]
    assert not (bundle.path / "engines").exists()


def test_read_only_bundle_uses_the_users_cache(bundle: Bundle, tmp_path: Path) -> None:
    # A file in the folder's place stands in for a read-only disk; root may write where permissions forbid it.
    (bundle.path / "engines").write_text("")
    folder = cache.store(bundle, _key(bundle), lambda folder: (folder / "model").write_text("x") and None)
    assert folder.is_relative_to(tmp_path / "user cache")
    assert cache.find(bundle, _key(bundle)) == folder


def test_nowhere_to_write(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGE_ENGINE_CACHE", str(tmp_path / "file"))
    with pytest.raises(EngineError, match="set EDGE_ENGINE_CACHE to a folder"):
        engines.build(bundle, "openvino")


def test_two_builders_at_once_end_with_one_engine(bundle: Bundle) -> None:
    """Race: both find nothing, both build; the second rename meets the first one's folder."""
    both_building = threading.Barrier(2, timeout=30)
    found: list[Path] = []

    def build(folder: Path) -> None:
        (folder / "model").write_text("the same")
        both_building.wait()

    def builder() -> None:
        found.append(cache.store(bundle, _key(bundle), build))

    threads = [threading.Thread(target=builder) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 2
    assert found[0] == found[1]
    assert sorted(p.name for p in found[0].iterdir()) == [cache.KEY, "model"]
    assert [p.name for p in found[0].parent.iterdir()] == [found[0].name]


def test_key_follows_everything_that_matters(bundle: Bundle, bundles: Callable[..., Bundle]) -> None:
    from pipelines.engines.openvino import OpenVinoEngine

    key = _key(bundle)
    assert _key(Bundle.open(bundle.path)) == key
    changed = {
        field: replace(key, **{field: "x" if field != "graph" else -1}).name for field in key.__dataclass_fields__
    }
    assert key.name not in changed.values()
    assert len(set(changed.values())) == len(changed)
    colour = engines.registry.adapt(bundle.config, FrameSpec(pixel_format=PixelFormat.BGR8, height=80, width=96))
    others = [
        OpenVinoEngine.make_key(bundle, bundle.config, "bf16"),
        OpenVinoEngine.make_key(bundle, colour, "fp32"),
        _key(bundles(frame=(80, 96), seed=1)),
    ]
    assert len({key.name, *(other.name for other in others)}) == 4


def test_precision_that_fails_the_gate_gives_way(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from pipelines.engines.openvino import OpenVinoEngine

    monkeypatch.setattr(OpenVinoEngine, "auto_precisions", classmethod(lambda cls: ("bf16", "fp32")))
    with engines.load(bundle, ("openvino",)) as engine:
        assert engine.key.precision == "bf16"
    monkeypatch.setitem(TOLERANCES, "bf16", Tolerance(score=1e-7, map=1e-7))
    with engines.load(bundle, ("openvino",)) as engine:
        assert engine.key.precision == "fp32"
    assert "in bf16 does not pass the parity gate" in caplog.text
    with pytest.raises(EngineError, match="may not judge parts"):
        engines.load(bundle, ("openvino",), options=EngineOptions(precision="bf16"))


def test_torch_needs_no_build(bundle: Bundle) -> None:
    with pytest.raises(EngineError, match="needs no build"):
        engines.build(bundle, "torch")


def _key(bundle: Bundle) -> engines.EngineKey:
    from pipelines.engines.openvino import OpenVinoEngine

    return OpenVinoEngine.make_key(bundle, bundle.config, "fp32")
