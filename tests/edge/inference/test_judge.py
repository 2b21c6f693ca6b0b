from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge.inference.judge import Judge, Kind, Refused, places
from edge.messages import MAX_BYTES, Score, ScoreStatus, encode
from pipelines.engines import EngineOptions
from pipelines.errors import BundleError
from pipelines.images import PixelFormat


def load(path: Path, *kinds: Kind, told: list[str] | None = None) -> Judge:
    return Judge.load(
        path, kinds or [Kind()], ["torch"], EngineOptions(threads=1), (told if told is not None else []).append
    )


def test_scores_are_the_bundles_own(tmp_path: Path, make_bundle: Any, make_frame: Any) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    judge = load(bundle.path)
    reference = bundle.reference()
    results = judge.score(judge.engine(make_frame()), reference.frames)
    assert [[region.score for region in regions] for regions in results] == pytest.approx(reference.scores, rel=1e-5)
    patches = np.frombuffer(results[1][0].patches, "<f4").reshape(results[1][0].height, results[1][0].width)
    np.testing.assert_allclose(patches, reference.maps[1, 0], rtol=1e-4, atol=1e-6)
    assert (results[0][0].limit, results[0][0].floor) == (bundle.limit.regions[0].limit, bundle.limit.regions[0].floor)
    judge.close()


def test_regions_tell_their_rectangles(tmp_path: Path, make_bundle: Any, make_frame: Any) -> None:
    regions = [
        {"name": "left", "x_px": 0, "y_px": 0, "width_px": 40, "height_px": 64},
        {"name": "rim", "x_px": 32, "y_px": 10, "width_px": 48, "height_px": 50},
    ]
    bundle = make_bundle(tmp_path / "bundle", regions=regions)
    assert [place.box for place in places(bundle)] == [(0, 0, 40, 64), (32, 10, 80, 60)]
    judge = load(bundle.path)
    ((left, rim),) = judge.score(judge.engine(make_frame()), bundle.reference().frames[:1])
    assert (left.name, left.right, rim.name, rim.left, rim.top, rim.right, rim.bottom) == (
        "left",
        40,
        "rim",
        32,
        10,
        80,
        60,
    )
    judge.close()


def test_frame_of_another_size_is_refused(tmp_path: Path, make_bundle: Any, make_frame: Any) -> None:
    judge = load(make_bundle(tmp_path / "bundle").path)
    with pytest.raises(Refused, match="the frame is 80x63 px, the bundle was calibrated on 80x64"):
        judge.engine(make_frame(height=63))
    judge.close()


def test_other_pixel_format_is_prepared_beside(tmp_path: Path, make_bundle: Any, make_frame: Any) -> None:
    told: list[str] = []
    judge = load(make_bundle(tmp_path / "bundle").path, told=told)
    colour = make_frame(pixel_format=PixelFormat.BGR8)
    with pytest.raises(Refused, match="is being prepared"):
        judge.engine(colour)
    assert judge._thread is not None
    judge._thread.join(30)
    engine = judge.engine(colour)
    ((region,),) = judge.score(engine, [np.full((64, 80, 3), 90, np.uint8)])
    ((gray,),) = judge.score(judge.engine(make_frame()), [np.full((64, 80, 1), 90, np.uint8)])
    assert region.score == pytest.approx(gray.score, rel=1e-3)
    assert "preparing an engine" in told[0]
    judge.close()


def test_what_the_settings_promise_is_ready_at_once(tmp_path: Path, make_bundle: Any, make_frame: Any) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    judge = load(bundle.path, Kind(PixelFormat.BAYER_RG8, (128, 160)), Kind(PixelFormat.RGB8))
    judge.engine(make_frame(pixel_format=PixelFormat.BAYER_RG8, height=128, width=160))
    judge.engine(make_frame(pixel_format=PixelFormat.RGB8))
    with pytest.raises(Refused):
        judge.engine(make_frame())
    judge.close()


def test_frames_of_any_size(tmp_path: Path, make_bundle: Any, make_frame: Any) -> None:
    judge = load(make_bundle(tmp_path / "bundle", frame=None).path)
    assert judge.engine(make_frame()) is judge.engine(make_frame(height=99, width=301))
    judge.close()


def test_damaged_bundle_is_refused(tmp_path: Path, make_bundle: Any) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    weights = bundle.path / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.chmod(0o600)
    weights.write_bytes(data)
    with pytest.raises(BundleError, match="damaged"):
        load(bundle.path)


def test_refused_engine_is_told_and_the_next_one_judges(tmp_path: Path, make_bundle: Any) -> None:
    told: list[str] = []
    bundle = make_bundle(tmp_path / "bundle")
    judge = Judge.load(bundle.path, [Kind()], ["nonsense", "torch"], EngineOptions(threads=1), told.append)
    assert told[0].startswith("engine nonsense refused: ")
    judge.close()


def test_precision_that_no_engine_has_falls_back_and_says_so(tmp_path: Path, make_bundle: Any) -> None:
    told: list[str] = []
    bundle = make_bundle(tmp_path / "bundle")
    judge = Judge.load(bundle.path, [Kind()], ["torch"], EngineOptions(threads=1, precision="int8"), told.append)
    assert told[0].startswith("engine torch refused: ")
    assert told[1].startswith("no engine judges in int8; taking precision auto: ")
    assert "fp32" in judge.description
    judge.close()


def test_score_that_is_no_number_is_an_error(tmp_path: Path, make_bundle: Any) -> None:
    judge = load(make_bundle(tmp_path / "bundle").path)

    class Broken:
        def score(self, frames: Any) -> Any:
            return np.array([[np.nan]], np.float32), np.zeros((1, 1, 4, 4), np.float32)

    with pytest.raises(ValueError, match="not a number"):
        judge.score(Broken(), [np.zeros((64, 80, 1), np.uint8)])  # type: ignore[arg-type]
    judge.close()


def test_maps_that_are_too_large_for_a_message_stay_home(tmp_path: Path, make_bundle: Any, make_frame: Any) -> None:
    regions = [{"name": f"r{i}", "x_px": 0, "y_px": 0, "width_px": 40, "height_px": 64} for i in range(4)]
    judge = load(make_bundle(tmp_path / "bundle", regions=regions).path)

    class Large:
        def score(self, frames: Any) -> Any:
            return np.ones((1, 4), np.float32), np.ones((1, 4, 500, 500), np.float32)

    (large,) = judge.score(Large(), [np.zeros((64, 80, 1), np.uint8)])  # type: ignore[arg-type]
    assert [region.patches for region in large] == [b""] * 4
    score = Score(frame=make_frame(), status=ScoreStatus.OK, bundle="b", engine="e", regions=large, infer_ns=1)
    assert len(encode(score)) < MAX_BYTES
    judge.close()
