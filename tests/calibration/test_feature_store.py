import pytest
import torch

from calibration import feature_store
from calibration.checkpoints import StateFolder
from calibration.errors import FitError
from calibration.feature_store import CHUNK, FeatureStore
from calibration.workers import Workers


def silent(what: str, done: int, total: int, note: str) -> None:
    pass


class Encode:
    """Features of sample n: random numbers of its own. Counts what it was asked for; may fail once."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.asked: list[int] = []
        self.fail_at = fail_at

    def __call__(self, numbers) -> torch.Tensor:
        if self.fail_at in numbers:
            raise KeyboardInterrupt
        self.asked += numbers
        return torch.stack([torch.randn(3, 4, generator=torch.Generator().manual_seed(n)) for n in numbers])


@pytest.fixture
def state(tmp_path) -> StateFolder:
    folder = StateFolder(tmp_path / "b.fit", {"fit": 1})
    folder.open(False)
    return folder


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("where", ["memory", "files", "mapped"])
def test_kept_features_are_those_computed(state, where, batch):
    count, encode, progress = 2 * CHUNK + 7, Encode(), []
    store = FeatureStore.compute(
        count,
        encode,
        None if where == "memory" else state,
        lambda *call: progress.append(call),
        memory_bytes=0 if where == "mapped" else 1 << 30,
        batch=batch,
    )
    assert len(store) == count
    assert store.mapped == (where == "mapped")
    assert encode.asked == list(range(count))
    assert progress[-1] == ("features", count, count, "")
    some = [70, 0, 31, 32, 32, 64]
    assert torch.equal(store.rows(some), Encode()(some))


def test_an_interrupted_computation_goes_on_where_it_stopped(state):
    with pytest.raises(KeyboardInterrupt):
        FeatureStore.compute(3 * CHUNK, Encode(fail_at=CHUNK + 3), state, silent)
    again = Encode()
    store = FeatureStore.compute(3 * CHUNK, again, state, silent)
    assert again.asked == list(range(CHUNK, 3 * CHUNK))
    assert torch.equal(store.rows(range(3 * CHUNK)), Encode()(range(3 * CHUNK)))


def test_several_processes_share_the_work(state, monkeypatch):
    monkeypatch.setattr(Workers, "wait", lambda self: None)
    first, second = Encode(), Encode()
    with pytest.raises(FitError, match="damaged"):  # the other's files are not there: here nobody waits for them
        FeatureStore.compute(3 * CHUNK, first, state, silent, Workers(0, 2))
    assert first.asked == [*range(CHUNK), *range(2 * CHUNK, 3 * CHUNK)]
    store = FeatureStore.compute(3 * CHUNK, second, state, silent, Workers(0, 1))
    assert second.asked == list(range(CHUNK, 2 * CHUNK))
    assert len(store) == 3 * CHUNK
    with pytest.raises(FitError, match="need a folder"):
        FeatureStore.compute(4, first, None, silent, Workers(0, 2))


def test_a_mapped_store_reads_only_what_is_asked_for(tmp_path, state):
    """Far more features than the process may hold: its private memory must not grow with them."""

    def private_kib() -> int:
        with open("/proc/self/status") as status:  # noqa: PTH123
            return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

    def compute(numbers):
        return torch.full((len(numbers), 512, 128), float(numbers[0]))  # 256 KiB each

    count = 8 * CHUNK
    store = FeatureStore.compute(count, compute, state, silent, memory_bytes=1 << 20)
    before = private_kib()
    total = sum(float(store.rows([number])[0, 0, 0]) for number in range(count))
    assert total == sum(range(count))
    assert private_kib() - before < 16 << 10  # of 64 MiB


def test_a_full_disk_and_a_damaged_file_are_told(state, monkeypatch):
    monkeypatch.setattr(feature_store, "SPARE_BYTES", 1 << 60)
    with pytest.raises(FitError, match=r"the encoder's features of 64 pictures need .* GiB here"):
        FeatureStore.compute(2 * CHUNK, Encode(), state, silent)
    assert not list(state.path.glob("features-*"))
    monkeypatch.undo()
    FeatureStore.compute(2 * CHUNK, Encode(), state, silent)
    file = state.path / "features-00001.safetensors"
    file.write_bytes(file.read_bytes()[:-20])
    with pytest.raises(FitError, match=r"features-00001.safetensors: damaged .* without --resume"):
        FeatureStore.compute(2 * CHUNK, Encode(), state, silent)
