import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from calibration.checkpoints import StateFolder
from calibration.crops import Crops
from calibration.datasets import load_normals
from calibration.errors import FitError
from calibration.foreground import Foreground
from calibration.foundad import (
    FreshViews,
    Pictures,
    PooledViews,
    Trainer,
    TrainingOptions,
    distance,
    dropout_mask,
    initialise,
    train,
    training_loss,
)
from calibration.options import FitOptions, default_size, head_config, make_pipeline
from pipelines.config import FoundADConfig
from pipelines.encoders import compact
from pipelines.encoders.config import EncoderConfig
from pipelines.encoders.vit import Encoder
from pipelines.heads.foundad import FoundAD

TINY = EncoderConfig(
    name="tiny", family="dinov3", patch=16, width=96, depth=3, heads=2, hidden=192, rope_base=100.0, registers=4
)


def silent(what: str, done: int, total: int, note: str) -> None:
    pass


@pytest.fixture(scope="module")
def golden(data):
    with np.load(data / "foundad_train.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


@pytest.fixture
def golden_head(projector_weights) -> FoundAD:
    encoder = Encoder(replace(TINY, width=192, depth=4, heads=3, hidden=768)).init_weights(0)
    return FoundAD.from_published(projector_weights, encoder, (8, 8))


def keep_mask(golden: dict[str, np.ndarray], shape: torch.Size) -> torch.Tensor:
    bits = np.unpackbits(golden["train/dropout_keep_mask"])[: shape.numel()]
    return torch.from_numpy(bits.reshape(shape).astype(bool))


def test_losses_of_a_step_equal_the_reference(golden, golden_head):
    clean = torch.from_numpy(golden["clean/features"])
    pasted = torch.from_numpy(golden["abn/features"])
    mask = keep_mask(golden, pasted.shape)
    options = TrainingOptions(dropout=0.2)
    with torch.no_grad():
        got = {
            "l2_no_dropout": training_loss(golden_head, clean, pasted, None, options),
            "l2_dropout": training_loss(golden_head, clean, pasted, mask, options),
            "smooth_l1_no_dropout": training_loss(golden_head, clean, pasted, None, replace(options, loss="smooth_l1")),
            "smooth_l1_dropout": training_loss(golden_head, clean, pasted, mask, replace(options, loss="smooth_l1")),
            "l2_clean_pair": training_loss(golden_head, clean, clean, None, options),
        }
    for name, value in got.items():
        assert float(value) == pytest.approx(float(golden[f"train/loss_{name}"]), rel=2e-6), name


def test_gradients_of_a_step_equal_the_reference(golden, golden_head):
    clean, pasted = (torch.from_numpy(golden[f"{kind}/features"]) for kind in ("clean", "abn"))
    golden_head.projector.requires_grad_(True)
    mask = keep_mask(golden, pasted.shape)
    training_loss(golden_head, clean, pasted, mask, TrainingOptions()).backward()
    names = {
        "predictor_embed": "embed",
        "predictor_norm": "norm",
        "predictor_proj": "proj",
        "predictor_blocks": "blocks",
    }
    ours = dict(golden_head.projector.named_parameters())
    checked = 0
    for key in (key for key in golden if key.startswith("train/grad_l2norm/")):
        first, _, rest = key.rsplit("/", 1)[1].partition(".")
        if first == "mask_token":
            assert float(golden[key]) == -1.0
            continue
        gradient = ours[f"{names[first]}.{rest}"].grad
        assert gradient is not None
        assert float(gradient.norm()) == pytest.approx(float(golden[key]), rel=2e-4), key
        checked += 1
    assert checked == len(ours)


def test_distance_is_a_mean_over_batch_patches_and_channels():
    a, b = torch.zeros(2, 3, 4), torch.full((2, 3, 4), 2.0)
    assert float(distance(a, b)) == 4.0
    assert float(distance(a, b, "smooth_l1")) == 1.5


def test_dropout_is_a_function_of_seed_and_step():
    options = TrainingOptions(seed=5)
    shape = torch.Size((4, 50, 20))
    mask = dropout_mask(shape, 7, options)
    assert mask is not None
    assert torch.equal(mask, dropout_mask(shape, 7, options))
    assert not torch.equal(mask, dropout_mask(shape, 8, options))
    assert 0.77 < float(mask.float().mean()) < 0.83
    assert dropout_mask(shape, 7, replace(options, dropout=0.0)) is None


@pytest.fixture
def setup(make_parts: Callable[..., Path], tmp_path: Path):
    encoder = Encoder(TINY).init_weights(1)
    images = load_normals(make_parts(5, 80, 70))
    options = FitOptions(tmp_path, tmp_path / "bundle", method="foundad", size=(64, 64), embed=48)
    pipeline = make_pipeline(options, encoder, images)
    crops = Crops(pipeline)
    crops.extend(images.frames(range(5)))
    return pipeline.head, encoder, crops


FAST = TrainingOptions(steps=12, batch=3, pool=7, seed=3, foreground=Foreground.OTSU)


def weights(head: FoundAD) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in head.projector.state_dict().items()}


@pytest.mark.parametrize("pool", [0, 7])
def test_a_killed_run_ends_like_an_undisturbed_one(setup, tmp_path, pool):
    head, encoder, crops = setup
    options = replace(FAST, pool=pool)
    losses = train(head, encoder, crops, options, None, silent)
    whole = weights(head)

    state = StateFolder(tmp_path / "state", {"what": "test"})
    assert not state.open(resume=True)

    class Killed(Exception):
        pass

    def stop_at_five(what: str, done: int, total: int, note: str) -> None:
        if what == "training" and done == 5:
            raise Killed

    pictures = Pictures(crops, encoder, options)
    initialise(head, options.seed)
    views = (
        PooledViews.compute(pictures, head, encoder, options, state, silent)
        if pool
        else FreshViews(pictures, head, encoder, options)
    )
    with pytest.raises(Killed):
        Trainer(head, views, options, state).run(stop_at_five, save_every_s=0.0)
    initialise(head, 99)
    again = StateFolder(tmp_path / "state", {"what": "test"})
    assert again.open(resume=True)
    assert train(head, encoder, crops, options, again, silent) == losses
    assert len(losses) == options.steps
    for name, tensor in weights(head).items():
        assert torch.equal(tensor, whole[name]), name


def test_training_lowers_the_loss_and_depends_on_the_seed(setup):
    head, encoder, crops = setup
    options = replace(FAST, steps=60)
    losses = train(head, encoder, crops, options, None, silent)
    assert np.mean(losses[-10:]) < 0.7 * np.mean(losses[:5])
    first = weights(head)
    train(head, encoder, crops, replace(options, steps=2, seed=4), None, silent)
    assert any(not torch.equal(tensor, first[name]) for name, tensor in weights(head).items())


def test_initial_weights_depend_on_the_seed_alone(setup):
    head, _, _ = setup
    initialise(head, 1)
    first = weights(head)
    torch.manual_seed(12345)
    before = torch.get_rng_state()
    initialise(head, 1)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(tensor, first[name]) for name, tensor in weights(head).items())


def test_pasted_twins_differ_in_one_place(setup):
    _, encoder, crops = setup
    pictures = Pictures(crops, encoder, replace(FAST, foreground=Foreground.ALL))
    for number in range(6):
        good, shown = pictures.pair(number, True)
        changed = (good != shown).any(0)
        assert good.shape == (3, 64, 64)
        assert 0 < int(changed.sum()) < 0.5 * changed.numel()
        again = pictures.pair(number, False)
        assert torch.equal(again[0], good)
        assert again[1] is again[0]


def test_a_loss_that_is_not_finite_stops_the_run(setup):
    head, encoder, crops = setup
    with pytest.raises(FitError, match="training step"):
        train(head, encoder, crops, replace(FAST, rate=1e30, steps=30), None, silent)


def test_no_pictures_no_training(setup):
    head, encoder, _ = setup
    pipeline_free = object.__new__(Crops)
    pipeline_free._crops = []
    with pytest.raises(FitError, match="no pictures"):
        train(head, encoder, pipeline_free, FAST, None, silent)


def test_a_time_budget_ends_the_run_early(setup):
    head, encoder, crops = setup
    losses = train(head, encoder, crops, replace(FAST, steps=10_000, minutes=0.002), None, silent)
    assert 1 <= len(losses) < 10_000


def test_the_state_of_another_fit_is_refused(tmp_path):
    folder = tmp_path / "b.fit"
    StateFolder(folder, {"seed": 1, "steps": 10}).open(False)
    with pytest.raises(FitError, match="seed was 1, is 2"):
        StateFolder(folder, {"seed": 2, "steps": 10}).open(True)
    assert StateFolder(folder, {"seed": 1, "steps": 10}).open(True)
    (folder / "fit.json").write_text("{")
    with pytest.raises(FitError, match="damaged"):
        StateFolder(folder, {"seed": 1}).open(True)
    (folder / "training.safetensors").write_bytes(b"rubbish")
    with pytest.raises(FitError, match="damaged"):
        StateFolder(folder, {}).load("training")
    assert not StateFolder(folder, {"seed": 3}).open(False)
    assert not (folder / "training.safetensors").exists()


def test_two_processes_do_not_fit_into_one_folder(tmp_path):
    code = (
        "import sys; from pathlib import Path; from calibration.checkpoints import StateFolder\n"
        "state = StateFolder(Path(sys.argv[1]), {}); state.open(False); print('ready', flush=True); sys.stdin.read()\n"
    )
    folder = tmp_path / "b.fit"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(FitError, match="another process"):
            StateFolder(folder, {}).open(True)
        other.kill()
        other.wait(30)
    assert StateFolder(folder, {}).open(True)


@pytest.mark.parametrize(
    ("aspect", "size"),
    [(1.0, (320, 320)), (1.4, (320, 320)), (2.52, (512, 208)), (0.4, (208, 512)), (40.0, (640, 160))],
)
def test_the_default_input_takes_the_shape_of_long_parts(aspect, size):
    assert default_size(compact(), "foundad", aspect) == size


def test_encoders_with_a_position_table_stay_square():
    config = replace(TINY, family="dinov2", rope_base=None, grid=37, table_resize="bicubic_antialias", patch=14)
    assert default_size(Encoder(config), "memory_bank", 2.5) == (518, 518)


@pytest.mark.parametrize(("width", "embed"), [(96, 96), (192, 96), (384, 192), (768, 384), (1024, 384)])
def test_default_projector_keeps_the_published_ratio_to_the_encoder(tmp_path, width, embed):
    config = head_config(FitOptions(tmp_path, tmp_path / "b", method="foundad"), width, 12)
    assert isinstance(config, FoundADConfig)
    assert config.embed == embed
    assert config.last == 3
