from __future__ import annotations

from pathlib import Path

import pytest

from edge.errors import SettingsError
from edge.settings import Settings, load_settings

LINE = """
[line]
name = "l"
[inference]
bundle = "b"
[[cameras]]
name = "top"
{top}
source = {{ type = "simulated" }}
[[cameras]]
name = "side"
{side}
source = {{ type = "simulated" }}
"""


PLC = """source = { type = "simulated" }
[plc]
adapter = { type = "simulated" }
"""


def load(folder: Path, top: str = "", side: str = "") -> Settings:
    path = folder / "line.toml"
    text = LINE.format(top=top, side=side)
    path.write_text(text.removesuffix('source = { type = "simulated" }\n') if side == PLC else text)
    return load_settings(path)


def test_parts_are_numbered_by_their_frames_where_nothing_is_said(tmp_path: Path) -> None:
    settings = load(tmp_path, 'group = "a"', 'group = "a"')
    assert [camera.trigger.numbered_by for camera in settings.cameras] == ["frame", "frame"]
    assert settings.cameras[0].trigger.tolerances.tolerance_ns == 10_000_000


@pytest.mark.parametrize(
    ("top", "side", "text"),
    [
        ('group = "a"', "", "'a' has no other camera"),
        (
            'group = "a"\ntrigger = { numbered_by = "encoder", step_counts = 5 }',
            'group = "a"\ntrigger = { numbered_by = "encoder", step_counts = 6 }',
            "must number parts alike",
        ),
        ('trigger = { numbered_by = "plc" }', "", "needs the PLC to count"),
        ('trigger = { numbered_by = "plc", answer_ms = 40 }', PLC, "must be above .plc. heartbeat_ms = 50"),
        ('trigger = { numbered_by = "plc", wait_ms = 600 }', PLC, "must be below the deadline of 500"),
        ('trigger = { numbered_by = "encoder" }', "", "step_counts goes with"),
        ("trigger = { step_counts = 5 }", "", "step_counts goes with"),
        ("trigger = { wait_ms = 60 }", "", "must be above answer_ms and tolerance_ms"),
        ('trigger = { realign = "gap", gap_ms = 100 }', "", "must be above wait_ms"),
    ],
)
def test_what_cannot_work_is_refused_with_the_reason(tmp_path: Path, top: str, side: str, text: str) -> None:
    with pytest.raises(SettingsError, match=text):
        load(tmp_path, top, side)
