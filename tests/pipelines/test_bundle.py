"""Bundles: whole or not there, named by content, and every damage found and named."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from pipelines import manifest as manifests
from pipelines.bundle import Bundle, FileEntry, Limit, Manifest, RegionLimit, write_bundle
from pipelines.errors import BundleError
from pipelines.pipeline import Pipeline, PipelineConfig
from pipelines.storage import sha256_file

ENCODER = {
    "name": "tiny",
    "family": "dinov3",
    "patch": 16,
    "width": 32,
    "depth": 2,
    "heads": 2,
    "hidden": 64,
    "registers": 1,
    "rope_base": 100.0,
}
LIMIT = Limit(
    regions=(RegionLimit(name="frame", limit=0.5, floor=0.1),),
    method="held-out quantile",
    false_reject_rate=0.01,
    n_normals=20,
    guarantee="none: 20 images are too few",
    seed=3,
)


def pipeline(frame: tuple[int, int] | None = None, seed: int = 0) -> Pipeline:
    torch.manual_seed(seed)
    made = Pipeline(
        PipelineConfig.model_validate(
            {
                "encoder": ENCODER,
                "head": {"name": "memory_bank", "size": 8},
                "input_size": (64, 64),
                "pixel_format": "Mono8",
                "frame": frame,
                "score": {"k": 3},
            }
        )
    )
    made.head.bank.copy_(torch.nn.functional.normalize(torch.randn(8, 32), dim=-1))
    return made


def frames(*sizes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(0, 256, (*size, 1), dtype=np.uint8) for size in sizes]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "tiles"
    write_bundle(path, pipeline(), LIMIT, frames((70, 90), (64, 64)), {"command": "calibrate fit", "seed": 3})
    return path


@pytest.fixture
def copied(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "copy"))


def test_round_trip(original: Path) -> None:
    bundle = Bundle.open(original)
    assert bundle.manifest.method == "memory_bank"
    assert bundle.limit == LIMIT
    assert bundle.manifest.provenance["command"] == "calibrate fit"
    assert bundle.limits.tolist() == [0.5]
    reference = bundle.reference()
    assert [frame.shape for frame in reference.frames] == [(70, 90, 1), (64, 64, 1)]
    torch.manual_seed(99)  # whatever torch's state: the weights come from the file
    again = bundle.pipeline()
    for frame, score, patch_map in zip(reference.frames, reference.scores, reference.maps, strict=True):
        scores, maps = again(torch.from_numpy(frame[None]))
        np.testing.assert_array_equal(scores[0].numpy(), score)
        np.testing.assert_array_equal(maps[0].numpy(), patch_map)


def test_id_is_the_content_and_nothing_else(original: Path, copied: Path) -> None:
    (copied / "engines").mkdir()
    (copied / "engines" / "something").write_text("built")
    assert Bundle.open(copied).id == Bundle.open(original).id


def test_other_weights_give_another_id(tmp_path: Path) -> None:
    same = {"made": "2026-01-01T00:00:00Z"}
    ids = [
        write_bundle(tmp_path / name, pipeline(seed=seed), LIMIT, frames((64, 64)), same).id
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert ids[0] == ids[1] != ids[2]


def test_half_weights_are_half_the_size_and_references_are_theirs(original: Path, tmp_path: Path) -> None:
    half = write_bundle(tmp_path / "half", pipeline(), LIMIT, frames((70, 90), (64, 64)), {}, half=True)
    sizes = [b.manifest.files["weights.safetensors"].bytes for b in (half, Bundle.open(original))]
    assert sizes[0] < 0.6 * sizes[1]
    reference = half.reference()
    assert not np.array_equal(reference.scores, Bundle.open(original).reference().scores)
    loaded = half.pipeline()
    assert loaded.encoder.cls_token.dtype == torch.float32
    np.testing.assert_array_equal(
        loaded(torch.from_numpy(reference.frames[0][None]))[0][0].numpy(), reference.scores[0]
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from([manifests.MANIFEST, manifests.WEIGHTS, manifests.REFERENCE]),
    place=st.floats(0, 1, exclude_max=True),
    bit=st.integers(0, 7),
)
def test_any_flipped_bit_is_found_and_its_file_named(original: Path, name: str, place: float, bit: int) -> None:
    content = bytearray((original / name).read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    damaged = original.parent / "damaged"
    shutil.rmtree(damaged, ignore_errors=True)
    shutil.copytree(original, damaged)
    (damaged / name).write_bytes(content)
    with pytest.raises(BundleError, match=name):
        Bundle.open(damaged)


@pytest.mark.parametrize("name", [manifests.MANIFEST, manifests.WEIGHTS, manifests.REFERENCE])
def test_missing_or_truncated_file_is_named(copied: Path, name: str) -> None:
    content = (copied / name).read_bytes()
    (copied / name).write_bytes(content[:-1])
    with pytest.raises(BundleError, match=name):
        Bundle.open(copied, verify=False)
    (copied / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: missing"):
        Bundle.open(copied, verify=False)


def test_other_schema_is_refused(copied: Path) -> None:
    file = copied / manifests.MANIFEST
    file.write_text(file.read_text().replace('"schema": 1', '"schema": 2'))
    with pytest.raises(BundleError, match=r"schema 2, this version of edge-inspect reads schema 1"):
        Bundle.open(copied)


@pytest.mark.parametrize("text", ["", "[]", "nonsense", "[" * 100_000, '{"schema": 1, "id": NaN}', '{"schema": 1}'])
def test_manifest_that_is_none(copied: Path, text: str) -> None:
    (copied / manifests.MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=manifests.MANIFEST):
        Bundle.open(copied)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no such folder"):
        Bundle.open(tmp_path / "nothing")


def test_weights_that_do_not_fit(copied: Path) -> None:
    """The file is intact, but was swapped for another bundle's when the manifest was made."""
    state = load_file(copied / manifests.WEIGHTS)
    name = "encoder.blocks.0.mlp.fc1.weight"
    state[name] = state[name][:-1].clone()
    save_file(state, copied / manifests.WEIGHTS)
    entry = FileEntry(bytes=(copied / manifests.WEIGHTS).stat().st_size, sha256=sha256_file(copied / manifests.WEIGHTS))
    manifest = manifests.read(copied)[1]
    changed = manifest.model_copy(update={"files": {**manifest.files, manifests.WEIGHTS: entry}})
    (copied / manifests.MANIFEST).write_bytes(manifests.encode(changed)[1])
    with pytest.raises(BundleError, match=r"do not fit.*encoder\.blocks\.0\.mlp\.fc1\.weight"):
        Bundle.open(copied).pipeline()


def test_never_overwrites(original: Path, tmp_path: Path) -> None:
    before = (original / manifests.MANIFEST).read_bytes()
    with pytest.raises(BundleError, match="never overwritten"):
        write_bundle(original, pipeline(), LIMIT, frames((64, 64)), {})
    assert (original / manifests.MANIFEST).read_bytes() == before
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="exists already"):
        write_bundle(tmp_path / "empty", pipeline(), LIMIT, frames((64, 64)), {})


def test_failed_write_leaves_nothing(tmp_path: Path) -> None:
    """A file-size limit stands in for a full disk: the same error comes from the same write."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(BundleError, match="cannot write"):
            write_bundle(tmp_path / "full", pipeline(), LIMIT, frames((64, 64)), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []


def test_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BundleError, match="cannot write a bundle"):
        write_bundle(tmp_path / "file" / "bundle", pipeline(), LIMIT, frames((64, 64)), {})


def test_parts_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="at least one reference frame"):
        write_bundle(tmp_path / "b", pipeline(), LIMIT, [], {})
    with pytest.raises(BundleError, match=r"frame 0 is uint8 \[64, 80, 1\].*\[64, 64, 1\]"):
        write_bundle(tmp_path / "b", pipeline((64, 64)), LIMIT, frames((64, 80)), {})
    two = Limit.model_validate(
        {**LIMIT.model_dump(), "regions": [*LIMIT.regions, {"name": "x", "limit": 1, "floor": 0}]}
    )
    with pytest.raises(BundleError, match="2 limits are given for 1 regions"):
        write_bundle(tmp_path / "b", pipeline(), two, frames((64, 64)), {})
    other = Limit.model_validate({**LIMIT.model_dump(), "regions": [{"name": "left", "limit": 1, "floor": 0}]})
    with pytest.raises(BundleError, match="left"):
        write_bundle(tmp_path / "b", pipeline(), other, frames((64, 64)), {})
    with pytest.raises(BundleError, match="NaN or infinite"):
        write_bundle(tmp_path / "b", pipeline(), LIMIT, frames((64, 64)), {"rate": float("nan")})
    broken = pipeline()
    broken.head.bank[0, 0] = float("nan")
    with pytest.raises(BundleError, match=r"head\.bank holds NaN"):
        write_bundle(tmp_path / "b", broken, LIMIT, frames((64, 64)), {})
    assert list(tmp_path.iterdir()) == []


def test_limit_is_above_its_floor() -> None:
    with pytest.raises(ValueError, match="must be above its floor"):
        RegionLimit(name="frame", limit=1.0, floor=1.0)
    assert LIMIT.regions[0].percent(0.5) == pytest.approx(100)
    assert LIMIT.regions[0].percent(0.1) == pytest.approx(0)


def test_manifest_knows_every_key(original: Path) -> None:
    raw = json.loads((original / manifests.MANIFEST).read_text())
    raw.pop("id")
    with pytest.raises(ValueError, match="Extra inputs"):
        Manifest.model_validate({**raw, "treshold": 1})


def test_reading_a_bundle_needs_no_torch(original: Path) -> None:
    code = (
        "import sys; from pipelines.bundle import Bundle; import pipelines.engines; "
        "b = Bundle.open(sys.argv[1]); print(b.id, b.reference().scores.shape, 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(original)], capture_output=True, text=True, check=True)
    assert run.stdout.split() == [Bundle.open(original).id, "(2,", "1)", "False"]
