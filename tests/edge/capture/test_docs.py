from __future__ import annotations

import re
from pathlib import Path

import pytest

from edge.messages import FrameStatus
from edge.settings import load_settings
from edge.settings_sources import FolderSource, GentlSource, GigeSource, OpencvSource, SimulatedSource

TEXT = (Path(__file__).parents[3] / "docs" / "cameras.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("model", [SimulatedSource, FolderSource, OpencvSource, GigeSource, GentlSource])
def test_every_setting_of_a_source_is_shown(model):
    missing = [name for name in model.model_fields if not re.search(rf"^#? ?{name} = ", TEXT, re.MULTILINE)]
    assert missing == []


def test_every_status_is_explained():
    explained = set(re.findall(r"^  \| `(\w+)` \|", TEXT, re.MULTILINE))
    assert explained == {status.value for status in FrameStatus}


@pytest.mark.parametrize("number", range(7))
def test_the_examples_are_valid(tmp_path, number):
    example = re.findall(r"```toml\n(.*?)```", TEXT, re.DOTALL)[number]
    head = '[line]\nname = "press"\n'
    if "[[cameras]]" not in example:
        head += '[[cameras]]\nname = "top"\nbundle = "b"\n'
    (tmp_path / "line.toml").write_text(head + example)
    assert load_settings(tmp_path / "line.toml").cameras[0].name == "top"


def test_the_pictures_are_there():
    pictures = re.findall(r"\]\((images/[^)]+)\)", TEXT)
    assert len(pictures) == 4
    for picture in pictures:
        assert (Path(__file__).parents[3] / "docs" / picture).stat().st_size < 60_000
