"""Kept features are the encoder's own, bit by bit, whatever lies in the folder."""

import numpy as np
import pytest
import torch

from calibration.errors import FitError
from calibration.kept_encoder import KeptEncoder, encoder_id
from pipelines.encoders import Encoder, compact
from pipelines.encoders.config import EncoderConfig


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return compact()


def pictures(count: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, 3, 48, 32, generator=torch.Generator().manual_seed(seed))


def test_they_equal_the_encoders_and_are_computed_once(encoder, tmp_path):
    images = pictures(2)
    kept = KeptEncoder(encoder, tmp_path)
    for _ in range(2):
        for one in images:
            for mine, its in zip(kept.taps(one[None], (3, 11)), encoder.taps(one[None], (3, 11)), strict=True):
                assert torch.equal(mine, its)
    assert (kept.hits, kept.misses) == (2, 2)
    # A batch gives each picture's own row; another process finds what this one kept.
    again = KeptEncoder(encoder, tmp_path)
    (rows,) = again.taps(images.flip(0), (11,))
    assert torch.equal(rows[1], encoder.taps(images[:1], (11,))[0][0])
    assert torch.equal(again.features(images[:1], last=2), encoder.features(images[:1], last=2))
    assert again.misses == 0
    again.taps(images[:1], (3, 4))  # a block that is not there
    assert again.misses == 1


def test_another_encoder_or_size_shares_nothing(encoder, tmp_path):
    KeptEncoder(encoder, tmp_path).taps(pictures(1), (2,))
    other = Encoder(encoder.config).init_weights(1)
    assert encoder_id(other) != encoder_id(encoder)
    assert encoder_id(encoder) == encoder_id(compact())
    kept = KeptEncoder(other, tmp_path)
    assert torch.equal(kept.taps(pictures(1), (2,))[0], other.taps(pictures(1), (2,))[0])
    assert kept.misses == 1
    # The same values in another shape are another picture.
    turned = pictures(1).reshape(1, 3, 32, 48)
    same = KeptEncoder(encoder, tmp_path)
    assert torch.equal(same.taps(turned, (2,))[0], encoder.taps(turned, (2,))[0])


@pytest.mark.parametrize("damage", ["empty", "cut", "shape", "type"])
def test_damaged_files_are_computed_anew(encoder, tmp_path, damage):
    wanted = KeptEncoder(encoder, tmp_path).taps(pictures(1), (2,))[0]
    (file,) = tmp_path.rglob("*.npy")
    if damage == "empty":
        file.write_bytes(b"")
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-40])
    elif damage == "shape":
        np.save(file, np.zeros((5, 5), np.float32))
    else:
        np.save(file, np.zeros((6, encoder.width), np.int32))
    kept = KeptEncoder(encoder, tmp_path)
    assert torch.equal(kept.taps(pictures(1), (2,))[0], wanted)
    assert kept.misses == 1
    assert [path for path in tmp_path.rglob("*") if path.suffix == ".part"] == []
    assert KeptEncoder(encoder, tmp_path)._one(pictures(1)[0], (2,))[0].equal(wanted[0])


def test_a_folder_that_cannot_be_written_is_named(encoder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FitError, match=r"cannot be kept here .*choose another --keep-features"):
        KeptEncoder(encoder, tmp_path / "file").taps(pictures(1), (2,))


def test_half_precision_is_not_kept(tmp_path):
    small = Encoder(EncoderConfig.from_dict({**compact().config.to_dict(), "depth": 2})).init_weights(0).half()
    kept = KeptEncoder(small, tmp_path).half()
    kept.taps(pictures(1).half(), (2,))
    assert list(tmp_path.rglob("*.npy")) == []
