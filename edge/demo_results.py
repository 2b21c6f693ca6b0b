"""A simulated run against the simulator's truth: mistakes, latency, contact sheet."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edge.alert.history import History, Query
from edge.alert.ledger_schema import Entry
from edge.alert.overlay import frame_of
from edge.capture.simulation import Conveyor
from edge.contact_sheet import COLUMNS, Section, Tile, write
from edge.messages import Decision
from pipelines.errors import InspectError

_LEAST_CROP_PX, _CROP_BOXES = 176, 3  # a crop around a defect: its least side, and how many boxes it spans
MISSED, FALSE, REJECTED, UNSURE = (214, 40, 40), (240, 140, 0), (60, 120, 190), (120, 120, 126)


class DemoError(InspectError):
    """The demo cannot run, or cannot compare what it made."""


@dataclass(frozen=True)
class Judged:
    """One part: its verdict, and the truth."""

    entry: Entry
    index: int  # of the part on the conveyor
    defect: str | None
    severity: float
    box: tuple[int, int, int, int] | None

    @property
    def decision(self) -> Decision:
        """The line's verdict."""
        return self.entry.verdict.decision

    @property
    def percent(self) -> float:
        """Score as percent of limit; 0 where the part was not judged."""
        return self.entry.verdict.percent or 0.0


@dataclass(frozen=True)
class Comparison:
    """All parts of a run."""

    parts: Sequence[Judged]
    archive: Path

    def count(self, decision: Decision) -> int:
        """Parts with that verdict."""
        return sum(part.decision is decision for part in self.parts)

    @property
    def defective(self) -> int:
        """Parts that truly have a defect."""
        return sum(part.defect is not None for part in self.parts)

    @property
    def missed(self) -> list[Judged]:
        """Defective parts that passed, the plainest defect first."""
        found = [part for part in self.parts if part.defect and part.decision is Decision.PASS]
        return sorted(found, key=lambda part: -part.severity)

    @property
    def false_rejects(self) -> list[Judged]:
        """Good parts that were rejected, the surest first."""
        found = [part for part in self.parts if not part.defect and part.decision is Decision.REJECT]
        return sorted(found, key=lambda part: -part.percent)

    @property
    def true_rejects(self) -> list[Judged]:
        """Defective parts that were rejected, the nearest to the limit first."""
        found = [part for part in self.parts if part.defect and part.decision is Decision.REJECT]
        return sorted(found, key=lambda part: part.percent)

    def latency_ms(self) -> dict[str, float]:
        """From trigger to verdict over all parts: p50, p99, max."""
        latencies = np.array([part.entry.verdict.latency_ns for part in self.parts]) / 1e6
        p50, p99 = np.percentile(latencies, (50, 99))
        return {"p50": round(float(p50), 2), "p99": round(float(p99), 2), "max": round(float(latencies.max()), 2)}

    def to_dict(self) -> dict[str, Any]:
        """The results as `edge demo --json` writes them."""
        return {
            "parts": len(self.parts),
            "pass": self.count(Decision.PASS),
            "reject": self.count(Decision.REJECT),
            "unjudged": self.count(Decision.UNJUDGED),
            "defective": self.defective,
            "missed_defects": len(self.missed),
            "false_rejects": len(self.false_rejects),
            "latency_ms": self.latency_ms(),
            "archive": str(self.archive),
        }


def compare(ledger: Path, truth_file: Path, archive: Path) -> Comparison:
    """Joins ledger and truth. Raises `DemoError` where a part has no truth, or a part of the truth no verdict."""
    try:
        rows = [json.loads(line) for line in truth_file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise DemoError(f"{truth_file}: the simulator's truth cannot be read: {error}") from error
    truth = {(row["epoch"], row["sequence"]): row for row in rows}
    with History(ledger) as history:
        entries = list(history.added(Query()))
    parts = []
    for entry in entries:
        row = truth.pop((entry.verdict.id.epoch, entry.verdict.id.sequence), None)
        if row is None:
            continue  # a part that the belt lost under the camera has no truth: it is no mistake of either kind
        box = tuple(row["box"]) if row.get("box") else None
        parts.append(Judged(entry, row["index"], row["defect"], row.get("severity", 0.0), box))
    if truth:
        raise DemoError(f"{ledger}: {len(truth)} parts that the simulator drew have no verdict")
    if not parts:
        raise DemoError(f"{ledger}: no part was judged")
    return Comparison(parts, archive)


def contact_sheet(path: Path, results: Comparison, conveyor: Conveyor, title: str) -> None:
    """Worst misses, worst false rejects, some rejects with heatmaps, and parts that were not judged."""
    latency = results.latency_ms()
    facts = [
        (str(len(results.parts)), "parts"),
        (str(results.defective), "with a defect"),
        (str(results.count(Decision.REJECT)), "rejected"),
        (str(len(results.missed)), "missed"),
        (str(len(results.false_rejects)), "false rejects"),
        (str(results.count(Decision.UNJUDGED)), "unjudged"),
        (f"{latency['p50']:.0f} / {latency['p99']:.0f} ms", "camera to verdict, p50 / p99"),
    ]
    missed, false, rejects = results.missed, results.false_rejects, results.true_rejects
    sections = [
        Section(
            f"Missed defects ({len(missed)}), the plainest first",
            MISSED,
            [_drawn(part, conveyor) for part in missed[:COLUMNS]],
            "none: every defective part was rejected",
        ),
        Section(
            f"False rejects ({len(false)}), the surest first",
            FALSE,
            [_archived(part, results.archive, conveyor) for part in false[:COLUMNS]],
            "none: no good part was rejected",
        ),
        Section(
            f"Rejected defects ({len(rejects)}), a sample from nearest the limit to farthest",
            REJECTED,
            [_archived(part, results.archive, conveyor) for part in _spread(rejects, 2 * COLUMNS)],
            "none",
        ),
    ]
    unjudged = [part for part in results.parts if part.decision is Decision.UNJUDGED]
    if unjudged:
        tiles = [_drawn(part, conveyor) for part in unjudged[:COLUMNS]]
        sections.append(Section(f"Unjudged ({len(unjudged)})", UNSURE, tiles))
    write(path, title, facts, sections)


def _spread(parts: Sequence[Judged], most: int) -> list[Judged]:
    """At most so many of them, evenly from first to last."""
    if len(parts) <= most:
        return list(parts)
    return [parts[round(i * (len(parts) - 1) / (most - 1))] for i in range(most)]


def _drawn(part: Judged, conveyor: Conveyor) -> Tile:
    """A part that is not in the archive, drawn again; of a defective one, what surrounds the defect."""
    image = conveyor.part(part.index).image
    if part.box is None:
        return Tile(_rgb(image), *_words(part))
    left, top, right, bottom = part.box
    height, width = image.shape[:2]
    side = min(height, width, max(_LEAST_CROP_PX, _CROP_BOXES * max(right - left, bottom - top)))
    x = min(max(0, (left + right - side) // 2), width - side)
    y = min(max(0, (top + bottom - side) // 2), height - side)
    box = left - x, top - y, right - x, bottom - y
    return Tile(_rgb(image[y : y + side, x : x + side]), *_words(part), box=box)


def _archived(part: Judged, archive: Path, conveyor: Conveyor) -> Tile:
    """A part as the archive shows it, with its heatmap."""
    entry = part.entry
    if entry.archive_path is not None:
        picture = cv2.imread(str(archive / f"{entry.archive_path}.overlay.png"))
        if picture is not None:
            return Tile(_rgb(frame_of(np.asarray(picture, np.uint8))), *_words(part))
    return _drawn(part, conveyor)


def _words(part: Judged) -> tuple[str, str]:
    title = f"{part.percent:.0f} % of limit" if part.entry.verdict.percent is not None else part.entry.verdict.reason
    what = f"{part.defect}, severity {part.severity:.2f}" if part.defect else "good part"
    return title, f"part {part.entry.verdict.part}: {what}".replace("_", " ")


def _rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture of 1 (gray) or 3 (BGR) channels as RGB."""
    if image.shape[2] == 1:
        return image.repeat(3, axis=2)
    return np.ascontiguousarray(image[:, :, ::-1])
