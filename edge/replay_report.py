"""What a replay found: how the verdicts agree, which changed, and what could not be replayed."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from rich import box
from rich.console import Console
from rich.table import Table

from edge.alert.ledger_schema import ArchiveState
from edge.messages import Decision
from edge.moments import iso
from edge.replay import Compared
from edge.replay_frames import NOT_KEPT, Missing
from pipelines.errors import InspectError

FORMAT = 1  # of the JSON
SHOWN = 20  # changed parts on the screen
KEPT = 100_000  # changed parts held for the table and the JSON; the CSV has all
UNKNOWN = "not in the ledger"


@dataclass(frozen=True, slots=True)
class Row:
    """One replayed frame, as the CSV and the JSON tell it. Percents are of the bundle's limit, of the worst region."""

    camera: str
    epoch: int | None
    sequence: int | None
    part: int | None
    decided_at: str | None
    old_decision: str | None
    old_percent: float | None
    old_score: float | None
    old_bundle: str | None
    new_decision: str
    new_percent: float | None
    new_score: float | None
    new_region: str | None
    new_reason: str
    frame: str

    @classmethod
    def of(cls, compared: Compared) -> Row:
        """From a comparison."""
        told = compared.frame.entry.verdict if compared.frame.entry is not None else None
        old, new = compared.old, compared.new
        return cls(
            camera=compared.frame.camera,
            epoch=told.id.epoch if told else None,
            sequence=told.id.sequence if told else None,
            part=told.part if told else None,
            decided_at=iso(told.decided_at_ns) if told else None,
            old_decision=old.decision.value if old else None,
            old_percent=old.percent if old else None,
            old_score=old.score if old else None,
            old_bundle=old.bundle if old else None,
            new_decision=new.decision.value,
            new_percent=new.percent,
            new_score=new.score,
            new_region=new.region,
            new_reason=new.reason,
            frame=compared.frame.source,
        )

    @property
    def moved(self) -> float:
        """By how many percent of limit the score moved."""
        return abs((self.new_percent or 0.0) - (self.old_percent or 0.0))


@dataclass
class Summary:
    """Counts over a replay."""

    matrix: Counter[tuple[str, str]] = field(default_factory=Counter)  # (old, new) decision
    missing: Counter[str] = field(default_factory=Counter)
    changed: list[Row] = field(default_factory=list)
    changed_count: int = 0
    same_bundle: int = 0  # frames that the ledger says were judged by this very bundle
    largest_difference: float = 0.0  # of their scores
    other_limit: int = 0  # of these, judged at another limit_percent than the settings have now
    passed_not_kept: int = 0

    def add(self, result: Compared | Missing, rows: RowFile | None = None) -> None:
        """Counts one part; writes its row where there is a file for it."""
        if isinstance(result, Missing):
            self.missing[result.reason] += 1
            entry = result.entry
            if entry is not None and entry.archive_state is ArchiveState.NONE:
                self.passed_not_kept += entry.verdict.decision is Decision.PASS
            return
        row = Row.of(result)
        self.matrix[row.old_decision or UNKNOWN, row.new_decision] += 1
        if rows is not None:
            rows.write(row)
        if result.changed:
            self.changed_count += 1
            if len(self.changed) < KEPT:
                self.changed.append(row)
        if result.same_bundle:
            self._same(result)

    def _same(self, result: Compared) -> None:
        """How far the score of the worst region is from what the ledger says of that region."""
        entry, new = result.frame.entry, result.new
        if entry is None or new.score is None or new.limit is None or entry.verdict.limit is None:
            return
        before = [region["score"] for region in entry.regions if region["name"] == new.region]
        if before:
            self.same_bundle += 1
            self.largest_difference = max(self.largest_difference, abs(before[0] - new.score))
            self.other_limit += new.region == entry.verdict.region and abs(entry.verdict.limit - new.limit) > 1e-6

    @property
    def replayed(self) -> int:
        """Frames that were judged again."""
        return sum(self.matrix.values())

    def count(self, old: Decision, new: Decision) -> int:
        """Parts with these two verdicts."""
        return self.matrix[old.value, new.value]

    def to_json(self, about: Mapping[str, Any]) -> dict[str, Any]:
        """Plain values for `--json`."""
        olds = sorted({old for old, _ in self.matrix})
        return {
            "format": FORMAT,
            **about,
            "replayed": self.replayed,
            "agreement": {
                old: {decision.value: self.matrix[old, decision.value] for decision in Decision} for old in olds
            },
            "changed": self.changed_count,
            "newly_rejected": self.count(Decision.PASS, Decision.REJECT),
            "newly_passed": self.count(Decision.REJECT, Decision.PASS),
            "not_replayed": dict(self.missing.most_common()),
            "same_bundle": {
                "frames": self.same_bundle,
                "largest_score_difference": self.largest_difference if self.same_bundle else None,
                "at_another_limit_percent": self.other_limit,
            },
            "parts": [asdict(row) for row in self.changed],
        }


class RowFile:
    """The CSV of all replayed frames: written beside its place, and there only when it is whole."""

    def __init__(self, path: Path) -> None:
        """Raises `InspectError` where the place cannot be written."""
        self._path = path
        self._part = path.with_name(f".{path.name}.part")
        try:
            self._file: TextIO = self._part.open("w", encoding="utf-8", newline="")
        except OSError as error:
            raise InspectError(f"{path}: cannot be written: {error.strerror}") from error
        self._writer = csv.DictWriter(self._file, list(Row.__dataclass_fields__), lineterminator="\n")
        self._writer.writeheader()

    def write(self, row: Row) -> None:
        """Adds one row."""
        self._writer.writerow(asdict(row))

    def finish(self) -> None:
        """Puts the file in its place. Raises `OSError`."""
        self._file.close()
        self._part.replace(self._path)

    def discard(self) -> None:
        """Removes what was written. Safe after `finish`."""
        self._file.close()
        self._part.unlink(missing_ok=True)


def show(console: Console, summary: Summary, names: tuple[str, str], shown: int = SHOWN) -> None:
    """Prints the agreement of old and new verdicts, the changed parts, and what could not be replayed."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("")
    for decision in Decision:
        table.add_column(decision.value, justify="right")
    for old in (*(decision.value for decision in Decision), UNKNOWN):
        counts = [summary.matrix[old, decision.value] for decision in Decision]
        if any(counts):
            table.add_row(old, *map(str, counts))
    if summary.replayed:
        _line(console, f"{summary.replayed} frames replayed: {names[0]} (rows) against {names[1]} (columns)")
        console.print(table)
    if summary.changed:
        _changed(console, summary, shown)
    for line in words(summary):
        _line(console, line)


def words(summary: Summary) -> list[str]:
    """What the numbers mean, in sentences."""
    lines = []
    if summary.replayed:
        lines.append(
            f"{summary.changed_count} of {summary.replayed} verdicts change: "
            f"{summary.count(Decision.PASS, Decision.REJECT)} parts that passed are rejected, "
            f"{summary.count(Decision.REJECT, Decision.PASS)} that were rejected pass"
        )
    if summary.same_bundle:
        lines.append(
            f"{summary.same_bundle} frames were judged by this very bundle before: scores differ by at most "
            f"{summary.largest_difference:.2g}"
        )
    if summary.other_limit:
        lines.append(f"{summary.other_limit} of these were judged at another limit_percent than the settings have now")
    for reason, count in summary.missing.most_common():
        lines.append(f"not replayed: {count} parts, {reason}")
    if summary.passed_not_kept:
        lines.append(
            'to keep frames of passed parts too, set [archive] save = ["pass", "reject", "unjudged"] for as long as '
            f"you want to compare, and look at max_gb and keep_days; {NOT_KEPT[ArchiveState.NONE]} now"
        )
    return lines


def _changed(console: Console, summary: Summary, shown: int) -> None:
    most = sorted(summary.changed, key=lambda row: -row.moved)[:shown]
    if not most:
        return
    more = f", the {len(most)} that moved farthest" if summary.changed_count > len(most) else ""
    _line(console, f"{summary.changed_count} changed{more}")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
    for name, justify in (("camera", "left"), ("part", "right"), ("old", "left"), ("%", "right")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
    for name, justify in (("new", "left"), ("%", "right"), ("frame", "left")):
        table.add_column(name, justify=justify, no_wrap=name != "frame", overflow="fold")  # type: ignore[arg-type]
    for row in most:
        table.add_row(
            row.camera,
            "-" if row.part is None else str(row.part),
            row.old_decision,
            _percent(row.old_percent),
            row.new_decision,
            _percent(row.new_percent),
            row.frame + (f" ({row.new_reason})" if row.new_reason else ""),
        )
    console.print(table)


def _line(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"
