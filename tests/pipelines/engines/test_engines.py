"""Engines: the same numbers as torch for every kind of frame, in place, and refusals in words."""

import mmap
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch

from pipelines import engines
from pipelines.bundle import Bundle
from pipelines.engines import EngineOptions, FrameSpec
from pipelines.engines.base import in_place
from pipelines.engines.frame import convert
from pipelines.errors import EngineError
from pipelines.images import PixelFormat

pytest.importorskip("openvino", reason="the openvino engine needs pip install 'edge-inspect[openvino]'")

FIXED = {"frame": (80, 96)}
REGIONS = [
    {"name": "left", "x_px": 0, "y_px": 0, "width_px": 48, "height_px": 80, "keep": ["1110", "1111", "1111", "0111"]},
    {"name": "right", "x_px": 40, "y_px": 8, "width_px": 56, "height_px": 64},
]


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(FIXED, id="gray"),
        pytest.param({}, id="gray of any size"),
        pytest.param({**FIXED, "pixel_format": "BGR8"}, id="colour"),
        pytest.param({**FIXED, "pixel_format": "BayerRG8", "regions": REGIONS}, id="mosaic, two regions"),
        pytest.param(
            {**FIXED, "head": {"name": "foundad", "embed": 32, "depth": 1, "heads": 2, "last": 1}}, id="foundad"
        ),
    ],
)
def test_openvino_equals_torch(bundles: Callable[..., Bundle], config: dict, pictures: Callable) -> None:
    bundle = bundles(**config)
    size = bundle.config.frame or (101, 77)
    frames = [pictures(*size, bundle.config.pixel_format.channels, seed=20 + i) for i in range(3)]
    if not bundle.config.frame:
        frames[1] = pictures(64, 200, 1, seed=30)
    with engines.load(bundle, ("openvino",)) as fast, engines.load(bundle, ("torch",)) as plain:
        assert (fast.name, plain.name) == ("openvino", "torch")
        got, wanted = fast.score(frames), plain.score(frames)
    assert got.scores.shape == (3, len(bundle.limit.regions))
    assert np.ptp(wanted.maps) > 0.01  # the frames do differ
    np.testing.assert_allclose(got.scores, wanted.scores, atol=1e-5)
    np.testing.assert_allclose(got.maps, wanted.maps, atol=2e-5)


def test_outputs_belong_to_the_caller(bundles: Callable[..., Bundle], pictures: Callable) -> None:
    with engines.load(bundles(**FIXED)) as engine:
        first = engine.score([pictures(80, 96, 1, seed=1)])
        kept = first.scores.copy(), first.maps.copy()
        engine.score([pictures(80, 96, 1, seed=2)])
        engine.warm()
        np.testing.assert_array_equal(first.scores, kept[0])
        np.testing.assert_array_equal(first.maps, kept[1])
        assert engine.score([]).scores.shape == (0, 1)


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_read_only_shared_memory_is_read_in_place_and_let_go(
    bundles: Callable[..., Bundle], pictures: Callable, name: str
) -> None:
    """A ring is mapped read-only and must be unmappable after scoring (mmap.close refuses while it is referenced)."""
    image = pictures(80, 96, 1, seed=5)
    memory = mmap.mmap(-1, image.nbytes)
    memory.write(image.tobytes())
    with engines.load(bundles(**FIXED), (name,)) as engine:
        wanted = engine.score([image])
        view = np.frombuffer(memory, dtype=np.uint8).reshape(image.shape)
        view.flags.writeable = False
        assert in_place(view).__array_interface__["data"][0] == view.__array_interface__["data"][0]
        got = engine.score([view])
        np.testing.assert_array_equal(got.scores, wanted.scores)
        del view
        memory.close()


def test_frame_with_gaps_is_scored_too(bundles: Callable[..., Bundle], pictures: Callable) -> None:
    wide = pictures(80, 192, 1, seed=6)
    with engines.load(bundles(**FIXED)) as engine:
        np.testing.assert_array_equal(
            engine.score([wide[:, ::2]]).scores, engine.score([np.ascontiguousarray(wide[:, ::2])]).scores
        )


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((80, 97, 1), np.uint8),
        np.zeros((80, 96, 3), np.uint8),
        np.zeros((80, 96), np.uint8),
        np.zeros((80, 96, 1), np.uint16),
    ],
)
def test_other_frames_are_refused_in_words(bundles: Callable[..., Bundle], frame: np.ndarray) -> None:
    with engines.load(bundles(**FIXED)) as engine, pytest.raises(EngineError, match=r"takes Mono8 96x80 frames.*given"):
        engine.score([frame])


def test_empty_frame_is_refused(bundles: Callable[..., Bundle]) -> None:
    with engines.load(bundles()) as engine, pytest.raises(EngineError, match="any size"):
        engine.score([np.zeros((0, 0, 1), np.uint8)])


@pytest.mark.parametrize("name", ["openvino", "torch"])
def test_camera_of_another_format_and_size(bundles: Callable[..., Bundle], pictures: Callable, name: str) -> None:
    """Gray seen by a colour camera is the same picture, so it must score the same."""
    bundle = bundles()
    spec = FrameSpec(pixel_format=PixelFormat.BGR8, height=90, width=120)
    image = pictures(90, 120, 1, seed=7)
    with engines.load(bundle, (name,), frame=spec) as engine, engines.load(bundle, ("torch",)) as own:
        assert engine.frame == spec
        got = engine.score([np.repeat(image, 3, axis=2)])
        np.testing.assert_allclose(got.scores, own.score([image]).scores, atol=2e-4)
        with pytest.raises(EngineError, match="BGR8 120x90"):
            engine.score([image])


def test_camera_that_regions_are_not_drawn_for(bundles: Callable[..., Bundle]) -> None:
    bundle = bundles(**FIXED, pixel_format="BayerRG8", regions=REGIONS)
    smaller = FrameSpec(pixel_format=PixelFormat.BAYER_RG8, height=40, width=48)
    with pytest.raises(EngineError, match=r"drawn for frames of 96x80 px, this camera delivers BayerRG8 48x40"):
        engines.load(bundle, frame=smaller)


def test_odd_mosaic_is_refused(bundles: Callable[..., Bundle]) -> None:
    with pytest.raises(EngineError, match="even height and width"):
        engines.load(bundles(), frame=FrameSpec(pixel_format=PixelFormat.BAYER_GB8, height=81, width=96))


@pytest.mark.parametrize("target", list(PixelFormat))
@pytest.mark.parametrize("source", list(PixelFormat))
def test_conversion_keeps_the_picture(source: PixelFormat, target: PixelFormat) -> None:
    """A gray ramp is the same in every format, whatever it passed through (mosaics blur the border)."""
    ramp = np.broadcast_to(np.arange(0, 240, 4, dtype=np.uint8)[None, :, None], (40, 60, 1))
    there = convert(np.ascontiguousarray(ramp), PixelFormat.MONO8, FrameSpec(pixel_format=source))
    across = convert(there, source, FrameSpec(pixel_format=target))
    assert across.shape == (40, 60, target.channels)
    back = convert(across, target, FrameSpec(pixel_format=PixelFormat.MONO8))
    assert np.abs(back[4:-4, 4:-4].astype(int) - ramp[4:-4, 4:-4]).max() <= 4


def test_conversion_keeps_colours_in_place() -> None:
    rgb = np.zeros((8, 8, 3), np.uint8)
    rgb[..., 0], rgb[..., 2] = 200, 50
    for mosaic in (f for f in PixelFormat if f.is_bayer):
        raw = convert(rgb, PixelFormat.RGB8, FrameSpec(pixel_format=mosaic))
        again = convert(raw, mosaic, FrameSpec(pixel_format=PixelFormat.BGR8))
        assert again[4, 4].tolist() == [50, 0, 200], mosaic
    assert convert(rgb, PixelFormat.RGB8, FrameSpec(pixel_format=PixelFormat.BGR8, height=4, width=6)).shape == (
        4,
        6,
        3,
    )


def test_missing_library_is_refused_and_the_next_engine_used(
    bundles: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    refused: list[tuple[str, str]] = []
    with engines.load(bundles(**FIXED), on_refused=lambda *what: refused.append(what)) as engine:
        assert engine.name == "torch"
    assert [name for name, _ in refused] == ["openvino"]
    assert "pip install 'edge-inspect[openvino]'" in refused[0][1]


def test_all_refused_lists_every_reason(bundles: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(
        EngineError, match=r"no engine may judge parts.*openvino: .*missing.*abacus: there is no engine"
    ):
        engines.load(bundles(**FIXED), ("openvino", "abacus"))
    with pytest.raises(EngineError, match="no engine is configured"):
        engines.load(bundles(**FIXED), ())


def test_a_librarys_own_failure_refuses_only_that_engine(
    bundles: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.engines.openvino import OpenVinoEngine

    def explode(*_: object) -> None:
        raise ZeroDivisionError("inside the library")

    monkeypatch.setattr(OpenVinoEngine, "open", explode)
    reasons: list[str] = []
    with engines.load(bundles(**FIXED), on_refused=lambda _, why: reasons.append(why)) as engine:
        assert engine.name == "torch"
    assert "ZeroDivisionError: inside the library" in reasons[0]


def test_int8_linear_layers_are_all_quantised_and_pass_the_gate(
    bundles: Callable[..., Bundle], pictures: Callable
) -> None:
    import openvino

    bundle = bundles(**FIXED)
    prepared = engines.prepare(bundle, "openvino", options=EngineOptions(precision="int8"))
    assert prepared.report.passed
    assert prepared.folder is not None
    model = openvino.Core().read_model(prepared.folder / "model.xml")
    stored = sum(op.get_type_name() == "Constant" and op.data.dtype == np.int8 for op in model.get_ops())
    assert stored == sum(isinstance(module, torch.nn.Linear) for module in bundle.pipeline().modules()) == 8
    frame = pictures(80, 96, 1, seed=9)
    with prepared.engine as engine, engines.load(bundle, ("torch",)) as plain:
        got, wanted = engine.score([frame]), plain.score([frame])
    np.testing.assert_allclose(got.scores, wanted.scores, rtol=0.02)
    assert not np.array_equal(got.scores, wanted.scores)  # it does compute in 8 bits


def test_options(bundles: Callable[..., Bundle]) -> None:
    with pytest.raises(EngineError, match="fp32 or bf16 or int8, not fp8"):
        engines.load(bundles(**FIXED), ("openvino",), options=EngineOptions(precision="fp8"))
    with engines.load(bundles(**FIXED), ("openvino",), options=EngineOptions(threads=1)) as engine:
        assert engine.description.endswith("1 threads")
    before = torch.get_num_threads()
    try:
        with engines.load(bundles(**FIXED), ("torch",), options=EngineOptions(threads=1)) as engine:
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
