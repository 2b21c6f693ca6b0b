"""What people say of parts: the truth, where the line has only an opinion.

A review is a row of the ledger's table `reviews`. Nothing is ever changed there: a second review of a part is a second
row, and the newest counts. With the archive's frames they make a labelled set, for `calibrate evaluate` and for limits.

Reviews are written by whoever has them, beside the running alert process, which waits only 50 ms for the file before
it must call a part unjudged. So what is written is checked beforehand, goes in few rows at a time, without checkpoints.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType

from edge.alert.history import History, Query
from edge.alert.ledger_keeper import connect
from edge.alert.ledger_schema import INSERT_REVIEW, REVIEW_COLUMNS, Entry, check_version, migrate
from edge.errors import LedgerError
from edge.messages import Decision, FrameId

BUSY_MS = 5000  # a person waits gladly for a commit of the line
ROWS_AT_ONCE = 64
PAUSE_S = 0.005  # between two transactions, in which the line gets at the file
LONGEST = 200  # characters of a kind or a name
LONGEST_NOTE = 2000


class Truth(str, Enum):
    """What a part really is."""

    GOOD = "good"
    DEFECT = "defect"


@dataclass(frozen=True)
class Review:
    """One word on one part. `kind` names the defect, where somebody did."""

    camera: str
    epoch: int
    sequence: int
    truth: Truth
    kind: str | None
    reviewer: str
    reviewed_at_ns: int  # wall clock
    note: str = ""

    @property
    def part(self) -> tuple[str, int, int]:
        """Camera, epoch and sequence."""
        return self.camera, self.epoch, self.sequence

    def check(self) -> None:
        """Raises `LedgerError` where this is no review that could be kept."""
        if self.truth is Truth.GOOD and self.kind:
            raise LedgerError(f"{_name(self.part)}: a good part has no kind of defect ({self.kind!r})")
        if not self.reviewer.strip():
            raise LedgerError(f"{_name(self.part)}: who says so? Give a name")
        for what, text, most in (
            ("kind", self.kind or "-", LONGEST),
            ("name", self.reviewer, LONGEST),
            ("note", self.note or "-", LONGEST_NOTE),
        ):
            if len(text) > most or not text.strip() or not all(c.isprintable() or c == "\n" for c in text):
                raise LedgerError(f"{_name(self.part)}: the {what} must be 1 to {most} printable characters")


class Reviews:
    """The reviews of one ledger, open for writing; alert may run meanwhile."""

    def __init__(self, path: Path) -> None:
        """Raises `LedgerError` where there is no ledger, or it cannot be used by this version."""
        self.path = path
        self._history = History(path)
        try:
            self._connection = connect(path)
            self._connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
            check_version(self._connection, path, None)
            migrate(self._connection)
        except sqlite3.Error as error:
            self._history.close()
            raise LedgerError(f"{path}: the ledger cannot be written: {error}") from error

    def add(self, reviews: Sequence[Review]) -> list[Entry]:
        """Writes the reviews, and returns the verdicts on their parts.

        Raises `LedgerError` where one is wrong or the ledger has no such part (nothing is written then), and where the
        file cannot be written (what was written before stays: a word said twice changes nothing).
        """
        entries = []
        for review in reviews:
            review.check()
            entries.append(self._entry(review))
        for start in range(0, len(reviews), ROWS_AT_ONCE):
            rows = [_row(review) for review in reviews[start : start + ROWS_AT_ONCE]]
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                self._connection.executemany(INSERT_REVIEW, rows)
                self._connection.execute("COMMIT")
            except sqlite3.Error as error:
                with contextlib.suppress(sqlite3.Error):
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                raise LedgerError(f"{self.path}: the ledger cannot be written: {error}") from error
            if start + ROWS_AT_ONCE < len(reviews):
                time.sleep(PAUSE_S)
        return entries

    def find(self, part: int, camera: str | None = None) -> tuple[str, int, int]:
        """The one part with this number. Raises `LedgerError` where there is none, or several: all are named."""
        found = [entry.verdict.id for entry in self._history.entries(Query(part=part, camera=camera, limit=9))]
        if len(found) == 1:
            return _identity(found[0])
        if not found:
            raise LedgerError(f"{self.path}: there is no part {part}" + (f" of camera {camera}" if camera else ""))
        named = ", ".join(_name(_identity(one)) for one in found[:8]) + (" and more" if len(found) > 8 else "")
        raise LedgerError(f"{self.path}: several parts have the number {part}: {named}; name one of these")

    def close(self) -> None:
        """Safe to call twice."""
        self._history.close()
        with contextlib.suppress(sqlite3.Error):
            self._connection.close()

    def __enter__(self) -> Reviews:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _entry(self, review: Review) -> Entry:
        entry = self._history.entry(*review.part)
        if entry is None:
            raise LedgerError(f"{self.path}: there is no part {_name(review.part)}; see `edge verdicts LINE --csv`")
        return entry


def read_reviews(history: History, every: bool = False) -> Iterator[Review]:
    """The word that counts on each part, or with `every` all that was ever said; oldest first. Raises `LedgerError`."""
    newest = "" if every else "WHERE row IN (SELECT max(row) FROM reviews GROUP BY camera, epoch, sequence)"
    for row in history.select_reviews(f"SELECT {REVIEW_COLUMNS} FROM reviews {newest} ORDER BY row"):  # noqa: S608
        camera, epoch, sequence, truth, kind, reviewer, at_ns, note = row
        yield Review(camera, epoch, sequence, Truth(truth), kind, reviewer, at_ns, note)


def confusion(pairs: Sequence[tuple[Review, Entry | None]]) -> Counter[tuple[Decision, Truth]]:
    """How often the line said what of parts that are so."""
    return Counter((entry.verdict.decision, review.truth) for review, entry in pairs if entry is not None)


def _row(review: Review) -> tuple[object, ...]:
    return (*review.part, review.truth.value, review.kind, review.reviewer, review.reviewed_at_ns, review.note)


def _identity(frame_id: FrameId) -> tuple[str, int, int]:
    return frame_id.camera, frame_id.epoch, frame_id.sequence


def _name(part: tuple[str, int, int]) -> str:
    return ":".join(map(str, part))
