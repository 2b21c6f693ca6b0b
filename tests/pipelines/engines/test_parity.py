"""The parity gate: what is allowed passes, and every planted fault is caught and named."""

import io
import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipelines import engines
from pipelines.bundle import Bundle
from pipelines.engines import cache
from pipelines.engines.openvino_convert import write_model
from pipelines.errors import EngineError, ParityError
from pipelines.manifest import Limit, RegionLimit
from pipelines.parity import TOLERANCES, ParityReport, compare
from pipelines.pipeline import Pipeline
from pipelines.storage import sha256_file

LIMIT = Limit(
    regions=(RegionLimit(name="frame", limit=2.0, floor=1.0),),
    method="m",
    false_reject_rate=0.1,
    n_normals=1,
    guarantee="",
    seed=0,
)
MAPS = np.linspace(0, 10, 2 * 4 * 4, dtype=np.float32).reshape(2, 1, 4, 4)
SCORES = np.array([[1.2], [2.5]], dtype=np.float32)


def report(scores: np.ndarray, maps: np.ndarray = MAPS, precision: str = "fp32") -> ParityReport:
    return compare("it", precision, SCORES, MAPS, scores.astype(np.float32), maps.astype(np.float32), LIMIT)


@given(
    precision=st.sampled_from(sorted(TOLERANCES)),
    score=st.floats(-1, 1).filter(lambda v: abs(abs(v) - 0.5) > 0.01),
    patch=st.floats(-1, 1).filter(lambda v: abs(abs(v) - 0.5) > 0.01),
)
def test_passes_within_tolerance_and_not_beyond(precision: str, score: float, patch: float) -> None:
    """Errors are drawn as multiples of twice the tolerance: below a half passes, above does not."""
    tolerance = TOLERANCES[precision]
    maps = MAPS.copy()
    maps[1, 0, 2, 3] += 2 * tolerance.map * patch * 10
    scores = SCORES + np.array([[2 * tolerance.score * score], [0]])
    found = report(scores, maps, precision)
    assert found.passed == (abs(score) < 0.5 and abs(patch) < 0.5)
    if not found.passed:
        with pytest.raises(ParityError, match=r"reference frame [01], region 'frame': expected score"):
            found.require()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_not_finite(bad: float) -> None:
    scores, maps = SCORES.copy(), MAPS.copy()
    scores[1, 0] = bad
    with pytest.raises(ParityError, match=r"frame 1.*expected score 2\.5 \(reject\), got .*NaN or infinite"):
        report(scores).require()
    maps[0, 0, 0, 0] = bad
    with pytest.raises(ParityError, match="NaN or infinite"):
        report(SCORES, maps).require()


def test_nearly_constant_map() -> None:
    flat = np.full_like(MAPS, MAPS.mean()) + 0.01 * MAPS
    with pytest.raises(ParityError, match="nearly constant"):
        report(SCORES, flat).require()


def test_verdict_may_differ_only_beside_the_limit() -> None:
    expected = np.array([[1.999], [2.5]], dtype=np.float32)
    beside = compare("it", "fp32", expected, MAPS, np.array([[2.001], [2.5]], np.float32), MAPS, LIMIT)
    assert beside.passed
    assert (beside.rows[0].expected_reject, beside.rows[0].got_reject) == (False, True)


def test_other_shapes() -> None:
    with pytest.raises(ParityError, match=r"shapes \(2, 1\) and \(2, 1, 4, 5\), expected"):
        report(SCORES, np.zeros((2, 1, 4, 5)))


def test_table_shows_every_row() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(report(np.array([[1.2], [2.1]])).table())
    text = console.export_text()
    assert "score off by 40.00% of limit - floor, allowed 1.00%" in text
    assert text.count("frame") == 3
    assert " ok " in text


def _plant(bundle: Bundle, pipeline: Pipeline) -> None:
    """Puts an engine made of `pipeline` where the bundle's own is looked for, complete with matching hashes."""
    pytest.importorskip("openvino", reason="the openvino engine needs pip install 'edge-inspect[openvino]'")
    from pipelines.engines.openvino import OpenVinoEngine

    key = OpenVinoEngine.make_key(bundle, bundle.config, "fp32")
    folder = bundle.path / "engines" / key.name
    folder.mkdir(parents=True)
    write_model(pipeline, folder, lambda what, done: None)
    files = {file.name: sha256_file(file) for file in folder.iterdir()}
    (folder / cache.KEY).write_text(json.dumps({"key": asdict(key), "files": files}))


def _swapped(pipeline: Pipeline) -> None:
    blocks = pipeline.encoder.blocks
    first = {name: tensor.clone() for name, tensor in blocks[0].state_dict().items()}
    blocks[0].load_state_dict(blocks[1].state_dict())
    blocks[1].load_state_dict(first)


def _wrong_normalisation(pipeline: Pipeline) -> None:
    pipeline.preprocess.shift.add_(1.0)  # as if the mean had not been subtracted


def _not_a_number(pipeline: Pipeline) -> None:
    pipeline.encoder.norm.weight[3] = math.nan


def _constant(pipeline: Pipeline) -> None:
    pipeline.encoder.patch_embed.proj.weight.zero_()


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (_swapped, "off by"),
        (_wrong_normalisation, "off by"),
        (_not_a_number, "NaN or infinite"),
        (_constant, "nearly constant"),
    ],
)
def test_faulty_engine_is_refused(
    new_bundle: Callable[..., Bundle],
    tmp_path: Path,
    fault: Callable[[Pipeline], None],
    words: str,
) -> None:
    bundle = new_bundle(tmp_path / "b", frame=(80, 96))
    pipeline = bundle.pipeline()
    with torch.no_grad():
        fault(pipeline)
    _plant(bundle, pipeline)
    refused: list[str] = []
    with engines.load(bundle, on_refused=lambda _, why: refused.append(why)) as engine:
        assert engine.name == "torch"
    assert len(refused) == 1
    assert words in refused[0]
    assert "reference frame" in refused[0]
    with pytest.raises(EngineError, match="no engine may judge parts"):
        engines.load(bundle, ("openvino",))


def test_planting_without_fault_passes(new_bundle: Callable[..., Bundle], tmp_path: Path) -> None:
    """The refusals above are for their faults, not for the planting."""
    bundle = new_bundle(tmp_path / "b", frame=(80, 96))
    _plant(bundle, bundle.pipeline())
    prepared = engines.prepare(bundle, "openvino")
    prepared.engine.close()
    assert not prepared.built
    assert prepared.report.passed
