"""Buffers of GPU engines: which frame gets which score. The computation is on the CPU, and on a GPU where one is."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from pipelines import engines
from pipelines.bundle import Bundle
from pipelines.engines import EngineKey
from pipelines.engines.cuda_buffers import Lanes, Run, Sizes
from pipelines.engines.cuda_engine import CudaEngine, sizes_of
from pipelines.engines.tensorrt_graph import EngineGraph
from pipelines.engines.tensorrt_targets import Batch
from pipelines.errors import EngineError

SIZES = Sizes(pixels=(4, 6, 1), maps=(2, 2, 3), low=1, high=3)


class Counting:
    """Scores: the sum of the pixels, and minus it. Remembers how many frames each run had."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, int]] = []

    def make(self, lane: int) -> Run:
        def run(frames: Tensor, scores: Tensor, maps: Tensor) -> None:
            self.runs.append((lane, len(frames)))
            total = frames.flatten(1).float().sum(1)
            scores.copy_(torch.stack((total, -total), 1))
            maps.copy_(total[:, None, None, None].expand(maps.shape))

        return run


def frames(count: int) -> list[np.ndarray]:
    rng = np.random.default_rng(count)
    made = [rng.integers(0, 256, (4, 6, 1), dtype=np.uint8) for _ in range(count)]
    for each in made:
        each.flags.writeable = False  # as a ring's slots are
    return made


def expected(given: list[np.ndarray]) -> np.ndarray:
    sums = np.array([each.sum(dtype=np.float32) for each in given])
    return np.stack((sums, -sums), 1)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 7, 20])
def test_every_frame_gets_its_own_score(count: int) -> None:
    counting = Counting()
    lanes = Lanes(SIZES, torch.device("cpu"), counting.make)
    given = frames(count)
    scores, maps = np.empty((count, 2), np.float32), np.empty((count, 2, 2, 3), np.float32)
    lanes.score(given, scores, maps)
    np.testing.assert_array_equal(scores, expected(given))
    np.testing.assert_array_equal(maps, np.broadcast_to(expected(given)[:, :1, None, None], maps.shape))
    assert [size for _, size in counting.runs] == [3] * (count // 3) + ([count % 3] if count % 3 else [])
    assert [lane for lane, _ in counting.runs] == [i % 2 for i in range(len(counting.runs))]  # lanes take turns


def test_a_static_batch_is_filled_up() -> None:
    counting = Counting()
    lanes = Lanes(Sizes((4, 6, 1), (2, 2, 3), low=4, high=4), torch.device("cpu"), counting.make)
    given = frames(5)
    scores = np.empty((5, 2), np.float32)
    lanes.score(given, scores, None)
    np.testing.assert_array_equal(scores, expected(given))
    assert [size for _, size in counting.runs] == [4, 4]


def test_batches_in_flight_keep_their_frames() -> None:
    """The caller's frame (a ring slot) may be overwritten the moment `submit` returns."""
    lanes = Lanes(SIZES, torch.device("cpu"), Counting().make)
    slot = np.full((4, 6, 1), 7, np.uint8)
    first = lanes.submit([slot])
    slot[:] = 9
    second = lanes.submit([slot, slot], maps=False)
    slot[:] = 0
    with pytest.raises(EngineError, match="2 batches are in flight; collect one first"):
        lanes.submit([slot])
    scores = np.empty((1, 2), np.float32)
    lanes.collect(first, scores)
    assert scores.tolist() == [[7 * 24, -7 * 24]]
    third = lanes.submit([slot])  # the first lane is free again
    both = np.empty((2, 2), np.float32)
    untouched = np.full((2, 2, 2, 3), -1.0, np.float32)
    lanes.collect(second, both, untouched)
    assert both[:, 0].tolist() == [9 * 24, 9 * 24]
    assert (untouched == -1).all()  # its maps were not asked for
    with pytest.raises(EngineError, match="collected already"):
        lanes.collect(first, scores)
    lanes.collect(third, scores)
    assert scores[0, 0] == 0


def test_too_many_and_no_frames_are_refused() -> None:
    lanes = Lanes(SIZES, torch.device("cpu"), Counting().make)
    for count in (0, 4):
        with pytest.raises(EngineError, match="an engine for 1 to 3"):
            lanes.submit(frames(count))


def test_a_failing_computation_leaves_the_lanes_usable() -> None:
    counting = Counting()
    fails = [True]

    def make(lane: int) -> Run:
        good = counting.make(lane)

        def run(frames: Tensor, scores: Tensor, maps: Tensor) -> None:
            if fails and len(counting.runs) == 1:
                fails.clear()
                raise RuntimeError("out of memory")
            good(frames, scores, maps)

        return run

    lanes = Lanes(SIZES, torch.device("cpu"), make)
    given = frames(7)
    scores = np.empty((7, 2), np.float32)
    with pytest.raises(RuntimeError, match="out of memory"):
        lanes.score(given, scores, None)
    lanes.score(given, scores, None)
    np.testing.assert_array_equal(scores, expected(given))


class OnTheCpu(CudaEngine):
    """What the GPU engines share, with everything real but the device."""

    name = "on_the_cpu"
    built = False
    supported = ("fp32",)

    @classmethod
    def make_key(cls, bundle: Bundle, config: object, precision: str, options: object = None) -> EngineKey:
        raise NotImplementedError

    @classmethod
    def open(cls, *arguments: object) -> "OnTheCpu":
        raise NotImplementedError

    @property
    def description(self) -> str:
        return "for this test"


@pytest.mark.parametrize("batch", ["1", "1:3", "4"])
def test_the_engine_around_the_buffers_scores_like_torch(
    bundles: Callable[..., Bundle], pictures: Callable[..., np.ndarray], batch: str
) -> None:
    bundle = bundles(frame=(80, 96), pixel_format="BGR8")
    graph = EngineGraph(bundle.pipeline(), "fp32")

    def run(frames: Tensor, scores: Tensor, maps: Tensor) -> None:
        with torch.inference_mode():
            for into, what in zip((scores, maps), graph(frames), strict=True):
                into.copy_(what)

    given = [pictures(80, 96, 3, seed=i) for i in range(7)]
    with engines.load(bundle, ("torch",)) as plain:
        wanted, key = plain.score(given), plain.key
    sizes = sizes_of(bundle.config, plain.shape, Batch.parse(batch))
    with OnTheCpu(Lanes(sizes, torch.device("cpu"), lambda lane: run), key, plain.frame) as engine:
        got = engine.score(given)
        np.testing.assert_allclose(got.scores, wanted.scores, atol=1e-5)
        np.testing.assert_allclose(got.maps, wanted.maps, atol=2e-5)
        alone = engine.collect(engine.submit(given[:1], maps=False))
        np.testing.assert_allclose(alone.scores, wanted.scores[:1], atol=1e-5)
        assert alone.maps.size == 0
        engine.warm()
        with pytest.raises(EngineError, match="takes BGR8 96x80 frames"):
            engine.submit([given[0][:, :, :1]])
    with pytest.raises(EngineError, match="--frame-size"):
        sizes_of(bundles().config, plain.shape, Batch())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU and a CUDA build of torch")
def test_graphs_on_a_gpu() -> None:
    lanes = Lanes(SIZES, torch.device("cuda", 0), Counting().make)
    assert lanes.capture() == 6
    given = frames(20)
    scores, maps = np.empty((20, 2), np.float32), np.empty((20, 2, 2, 3), np.float32)
    lanes.score(given, scores, maps)
    np.testing.assert_array_equal(scores, expected(given))
    lanes.close()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU and a CUDA build of torch")
@pytest.mark.parametrize("name", ["torch_cuda", "tensorrt"])
@pytest.mark.timeout(600)
def test_an_engine_on_a_gpu_passes_the_gate(bundles: Callable[..., Bundle], name: str) -> None:
    bundle = bundles(frame=(80, 96))
    try:
        prepared = engines.prepare(bundle, name, options=engines.EngineOptions(batch="1:4"))
    except EngineError as error:
        if "library is missing" in str(error):
            pytest.skip(str(error))
        raise
    with prepared.engine as engine:
        prepared.report.require()
        engine.warm()
        assert "CUDA graphs" in engine.description
