"""Authors' files, as they are saved, to whole pipelines that give the reference scores."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pipelines.errors import ImageError, WeightsError
from pipelines.pipeline import Pipeline
from pipelines.published import import_published

Weights = Callable[[str], dict[str, Tensor]]


def below(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def agrees(pipeline: Pipeline, images: Tensor, score: Tensor) -> bool:
    """The graph behind the preprocessing gives the reference's image score."""
    return torch.allclose(pipeline.judge(images)[0][:, 0].double(), score.double(), rtol=2e-5)


def test_foundad(tmp_path: Path, weights: Weights, golden: Any) -> None:
    state = weights("foundad")
    head, encoder = tmp_path / "train-step2000.pth.tar", tmp_path / "dinov3.pth"
    torch.save({"predictor": below(state, "predictor."), "projector": None, "epoch": 7, "lr": 1e-3}, head)
    torch.save(below(state, "encoder."), encoder)
    pipeline = import_published("foundad", head, encoder, input_size=(128, 128))
    assert pipeline.config.score.rule == "published"
    assert pipeline.config.round_resize
    arrays, _ = golden("foundad")
    for kind, images in (("clean", "input"), ("abn", "input_abnormal")):
        images = f"{kind}/input" if f"{kind}/input" in arrays else images
        assert agrees(pipeline, arrays[images], arrays[f"{kind}/image_score_top10"])
    assert import_published("foundad", head, encoder).config.input_size == (512, 512)
    with pytest.raises(WeightsError, match="holds no encoder; give the encoder"):
        import_published("foundad", head)
    with pytest.raises(ImageError, match="nearest height is 128 or 144"):
        import_published("foundad", head, encoder, input_size=(130, 128))


def test_visualad(tmp_path: Path, weights: Weights, golden: Any) -> None:
    state = weights("visualad")
    whole, saved, encoder = tmp_path / "whole.pth", tmp_path / "saved.pth", tmp_path / "clip.pth"
    torch.save(state, whole)
    arrays, _ = golden("visualad")
    pipeline = import_published("visualad", whole, input_size=(112, 112), heads=2)
    assert pipeline.config.resize == "bicubic"
    assert agrees(pipeline, arrays["input"], arrays["image_score_top1pct_mean"])

    visual = below(state, "visual.")
    own = ("anomaly_token", "normal_token", "anomaly_pos", "normal_pos")
    clip = {f"visual.{k}": v for k, v in visual.items() if k not in own}
    clip["visual.positional_embedding"] = clip.pop("visual.positional_embedding_frozen")
    torch.save(clip, encoder)
    torch.save(
        {
            "anomaly_token": visual["anomaly_token"],
            "normal_token": visual["normal_token"],
            "ln_post_weight": visual["ln_post.weight"],
            "ln_post_bias": visual["ln_post.bias"],
            "image_size": 112,
            "backbone": "ViT-L/14@336px",
            "layer_transforms": {f"layer_{n}": below(state, f"layer_transforms.layer_{n}.") for n in (1, 2, 3, 4)},
            "cross_attn": below(state, "cross_attn."),
        },
        saved,
    )
    again = import_published("visualad", saved, encoder, heads=2)
    assert again.config.input_size == (112, 112)
    assert again.judge(arrays["input"])[0].isfinite().all()


def test_vitad(tmp_path: Path, weights: Weights, golden: Any) -> None:
    file = tmp_path / "net.pth"
    torch.save({"net": weights("vitad")}, file)
    pipeline = import_published("vitad", file, heads=3)
    assert pipeline.config.input_size == (96, 96)
    assert pipeline.encoder.config.table_resize == "bicubic_antialias"  # as published, not DINO's own
    arrays, _ = golden("vitad")
    assert agrees(pipeline, arrays["input"], arrays["image_score"])
    frames = torch.randint(0, 256, (2, 61, 83, 3), dtype=torch.uint8)
    assert pipeline(frames)[1].shape == (2, 1, 6, 6)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("exploded"),))


def test_files_that_are_no_heads(tmp_path: Path, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    encoder = tmp_path / "dinov3.pth"
    torch.save(below(weights("foundad"), "encoder."), encoder)
    with pytest.raises(WeightsError, match=r"dinov3\.pth: this is no FoundAD checkpoint"):
        import_published("foundad", encoder, encoder)
    with pytest.raises(WeightsError, match=r"nothing\.pth: no such file"):
        import_published("vitad", tmp_path / "nothing.pth")
    half = tmp_path / "half.pth"
    half.write_bytes(encoder.read_bytes()[:4000])
    with pytest.raises(WeightsError, match=r"half\.pth"):
        import_published("foundad", half, encoder)
    bomb = tmp_path / "bomb.pth"
    bomb.write_bytes(pickle.dumps({"predictor": Bomb()}))
    with pytest.raises(WeightsError, match="nothing of it was run"):
        import_published("foundad", bomb, encoder)
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(WeightsError, match="no published heads called 'memory_bank'"):
        import_published("memory_bank", bomb)  # type: ignore[arg-type]
