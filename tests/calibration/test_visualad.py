import math

import cv2
import numpy as np
import pytest
import torch

from calibration.checkpoints import StateFolder
from calibration.errors import DataError
from calibration.samples import AuxiliarySamples
from calibration.sets import open_dataset
from calibration.training import Schedule
from calibration.visualad import Labelled, VisualADOptions, VisualADTrainer, initialise, pixel_maps, train
from pipelines.config import VisualADConfig
from pipelines.encoders import compact
from pipelines.heads import VisualAD

SIDE = 64
GRID = (SIDE // 16, SIDE // 16)


class Squares:
    """Noise; the defective half of the pictures holds a bright square, which is the mask."""

    def __init__(self, count: int = 24, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.all = torch.from_numpy(rng.normal(0, 0.5, (count, 3, SIDE, SIDE)).astype(np.float32))
        self.masks = torch.zeros(count, SIDE, SIDE)
        self.labels = torch.zeros(count)
        for number in range(0, count, 2):
            top, left = (int(v) for v in rng.integers(0, SIDE - 20, 2))
            self.masks[number, top : top + 20, left : left + 20] = 1
            self.labels[number] = 1
        self.all += 3 * self.masks[:, None]

    def __len__(self) -> int:
        return len(self.all)

    def batch(self, numbers) -> Labelled:
        some = list(numbers)
        return Labelled(self.all[some], self.masks[some], self.labels[some])


def make_head() -> VisualAD:
    return VisualAD(VisualADConfig(positions=64), width=192, depth=12, grid=GRID, patch=16, norm_eps=1e-5)


def silent(what: str, done: int, total: int, note: str) -> None:
    pass


def test_training_finds_defects_that_it_was_not_shown():
    encoder, head = compact(), make_head()
    options = VisualADOptions(rate=1e-3)
    losses = train(head, encoder, Squares(), Schedule(36, 8, seed=1), options, None, silent)
    assert np.mean(losses[-5:]) < 0.75 * np.mean(losses[:5])
    unseen = Squares(12, seed=9)
    with torch.no_grad():
        maps, tokens = pixel_maps(head, encoder, unseen.all)
        scores = head.published_score(head.patch_scores(encoder, unseen.all))
    assert scores[unseen.labels == 1].min() > scores[unseen.labels == 0].max()
    summed = torch.stack(maps).sum(0)
    inside = (unseen.masks > 0) & (unseen.labels == 1)[:, None, None]
    assert summed[inside].mean() > summed[~inside].mean() + 0.2
    assert not head.training
    assert tokens.shape == (12, 2, 192)


def test_only_the_head_is_trained():
    encoder, head = compact(), make_head()
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    initialise(head, encoder, 0)
    start = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    train(head, encoder, Squares(4), Schedule(2, 2), VisualADOptions(), None, silent)
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())
    unchanged = {name for name, tensor in head.state_dict().items() if torch.equal(start[name], tensor)}
    # What multiplies nothing else has no gradient: a shift of all keys. And nothing else stays as it was.
    assert {name for name in unchanged if not name.endswith("k_norm.bias")} == set()


def test_maps_are_those_that_the_head_scores_with():
    encoder, head = compact(), make_head()
    initialise(head, encoder, 3)
    head.eval()
    images = Squares(2).all
    with torch.no_grad():
        maps, _ = pixel_maps(head, encoder, images)
        mine = torch.stack(maps).sum(0)
        theirs = torch.nn.functional.interpolate(
            head.patch_scores(encoder, images)[:, None], (SIDE, SIDE), mode="bilinear"
        )[:, 0]
    assert torch.allclose(mine, theirs, atol=1e-5)


def test_rates_fall_on_a_cosine_to_the_floor_and_each_token_is_clipped():
    encoder, head = compact(), make_head()
    trainer = VisualADTrainer(head, encoder, Squares(4), Schedule(10, 2), VisualADOptions())
    head.requires_grad_(True)
    rates = []
    for step in range(11):
        trainer.step = step
        head.tokens.grad = torch.stack((torch.full((192,), 3.0), torch.full((192,), 0.01)))
        head.norm.weight.grad = torch.full((192,), 7.0)
        trainer.prepare_update()
        rates.append([group["lr"] for group in trainer.optimizer.param_groups])
    wave = [0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(11)]
    assert [token for token, _ in rates] == pytest.approx([1e-4 + 9e-4 * w for w in wave])
    assert [rest for _, rest in rates] == pytest.approx([1e-4] * 11)
    assert head.tokens.grad.norm(dim=1).tolist() == pytest.approx([1.0, 0.01 * 192**0.5], rel=1e-4)
    assert head.norm.weight.grad.mean() == 7.0


def test_a_resumed_training_equals_an_undisturbed_one(tmp_path):
    """Dropout included: its masks are functions of seed and step."""
    encoder, whole = compact(), make_head()
    options = VisualADOptions()
    expected = train(whole, encoder, Squares(8), Schedule(6, 4, seed=2), options, None, silent)
    state = StateFolder(tmp_path / "fit", {})
    state.open(False)

    def interrupt(what: str, done: int, total: int, note: str) -> None:
        if done == 4:
            raise KeyboardInterrupt

    schedule = Schedule(6, 4, seed=2, save_every_s=0.0)
    with pytest.raises(KeyboardInterrupt):
        train(make_head(), encoder, Squares(8), schedule, options, state, interrupt)
    torch.manual_seed(99)
    resumed = make_head()
    assert train(resumed, encoder, Squares(8), schedule, options, state, silent) == expected
    assert all(torch.equal(whole.state_dict()[name], tensor) for name, tensor in resumed.state_dict().items())


def write_set(root, masks: bool = True) -> None:
    """Two classes in the layout of MVTec AD: gray 50 x 40, and colour 80 x 100."""
    rng = np.random.default_rng(0)
    for name, shape in (("tile", (50, 40)), ("cap", (80, 100, 3))):
        for part, kind, count in (("train", "good", 3), ("test", "good", 2), ("test", "dent", 2)):
            folder = root / name / part / kind
            folder.mkdir(parents=True)
            for number in range(count):
                image = rng.integers(90, 110, shape, np.uint8)
                if kind == "dent":
                    image[10:30, 20:35] = 250
                    mask = np.zeros(shape[:2], np.uint8)
                    mask[10:30, 20:35] = 255
                    if masks:
                        there = root / name / "ground_truth" / kind
                        there.mkdir(parents=True, exist_ok=True)
                        cv2.imwrite(str(there / f"{number:03}_mask.png"), mask)
                cv2.imwrite(str(folder / f"{number:03}.png"), image)


def test_an_auxiliary_set_of_several_products_is_read(tmp_path):
    write_set(tmp_path / "set")
    samples = AuxiliarySamples(open_dataset(tmp_path / "set"), compact(), (64, 64))
    assert (len(samples), len(samples.good), len(samples.unseen), samples.unmasked) == (8, 4, 6, 0)
    batch = samples.batch(range(8))
    assert batch.images.shape == (8, 3, 64, 64)
    assert batch.masks.shape == (8, 64, 64)
    assert batch.labels.tolist() == [float(item.defective) for item in samples.items]
    shares = batch.masks.mean((1, 2))
    for item, share, image, mask in zip(samples.items, shares, batch.images, batch.masks, strict=True):
        if not item.defective:
            assert share == 0
            continue
        area = 20 * 15 / (50 * 40 if "tile" in item.path.parts else 80 * 100)
        assert share == pytest.approx(area, rel=0.15)
        # The mask lies on the dent, whatever was resized.
        assert image[:, mask > 0].mean() > image[:, mask == 0].mean() + 1


def test_a_set_that_cannot_teach_is_refused(tmp_path):
    write_set(tmp_path / "set", masks=False)
    with pytest.raises(DataError, match=r"8 labelled images here 4 are good and 0 are defective with a mask"):
        AuxiliarySamples(open_dataset(tmp_path / "set"), compact(), (64, 64))
