"""What a line has achieved since a moment: parts still undecided, counts and latencies. Reads ledger and journals."""

from __future__ import annotations

import sqlite3
import time
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.alert.history import History, Query
from edge.errors import LedgerError, MessageError, RingError, RingInUse, RingMissing
from edge.frames import RingReader, remove_ring, ring_path
from edge.messages import Decision, FrameRef, decode
from edge.settings import Settings

_LATENCIES = 100_000  # of the newest parts are looked at: enough for the 99.9th percentile, little enough to read


@dataclass(frozen=True)
class Summary:
    """Counts of verdicts, and latency from trigger to verdict in milliseconds."""

    counts: dict[Decision, int]
    latency_ms: dict[str, float]  # p50, p99, max; empty where there is no part

    @property
    def parts(self) -> int:
        """Parts with a verdict."""
        return sum(self.counts.values())

    def rows(self) -> list[tuple[str, str]]:
        """For a table: what, and how much."""
        rows = [("parts", str(self.parts))]
        rows += [(decision.value, str(self.counts[decision])) for decision in Decision]
        if self.latency_ms:
            rows += [(f"latency {name}", f"{value:.1f} ms") for name, value in self.latency_ms.items()]
        return rows


class _History(History):
    """The ledger with two more questions, asked of the index alone."""

    def decided(self, camera: str, epoch: int, at_least: int) -> set[int]:
        """Sequences from `at_least` on that have a verdict."""
        return {sequence for (sequence,) in self._rows("sequence", camera, epoch, at_least)}

    def latencies_ns(self, after_row: int) -> NDArray[np.int64]:
        """Of the newest parts after that row; one that was never judged took as long as its deadline."""
        rows = self._connection.execute(
            "SELECT latency_ns FROM verdicts WHERE row > ? ORDER BY row DESC LIMIT ?",
            (after_row, _LATENCIES),
        ).fetchall()
        return np.array(rows, dtype=np.int64).reshape(-1)

    def _rows(self, column: str, camera: str, epoch: int, at_least: int) -> sqlite3.Cursor:
        return self._connection.execute(
            f"SELECT {column} FROM verdicts WHERE camera = ? AND epoch = ? AND sequence >= ?",  # noqa: S608
            (camera, epoch, at_least),
        )


class Results:
    """Follows the line in `settings` from now on; what the ledger held before is left out."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._history: _History | None = None
        self._announced: dict[str, int] = {}  # journal entry to read next, by camera
        self._open: dict[tuple[str, int], set[int]] = defaultdict(set)  # announced, no verdict seen yet
        self._since_ms = time.time_ns() // 1_000_000  # epochs from here on are of this run
        history = self.history()
        self.after_row = history.last_row() if history is not None else 0

    def history(self) -> _History | None:
        """The ledger; None while there is none."""
        if self._history is None and self._settings.paths.ledger.is_file():
            try:
                self._history = _History(self._settings.paths.ledger)
            except LedgerError:
                return None  # being created just now, or damaged: alert is the one to say so
        return self._history

    def undecided(self) -> int:
        """Parts that this run has announced and that have no row in the ledger. Reads only what is new."""
        for camera in self._settings.cameras:
            self._read_journal(camera.name)
        history = self.history()
        if history is not None:
            for (camera_name, epoch), sequences in self._open.items():
                if sequences:
                    try:
                        sequences -= history.decided(camera_name, epoch, min(sequences))
                    except sqlite3.Error as error:
                        raise LedgerError(f"{history.path}: the ledger cannot be read: {error}") from error
        return sum(len(sequences) for sequences in self._open.values())

    def summary(self) -> Summary:
        """Counts and latencies since this object was made."""
        history = self.history()
        if history is None:
            return Summary(dict.fromkeys(Decision, 0), {})
        latencies = history.latencies_ns(self.after_row) / 1e6
        named: dict[str, float] = {}
        if latencies.size:
            p50, p99 = np.percentile(latencies, (50, 99))
            named = {"p50": float(p50), "p99": float(p99), "max": float(latencies.max())}
        return Summary(history.counts(Query(after_row=self.after_row)), named)

    def remove_rings(self) -> None:
        """Gives the shared memory of cameras whose capture has ended back to the system."""
        for camera in self._settings.cameras:
            try:
                remove_ring(ring_path(self._settings.line.name, camera.name))
            except RingInUse:
                continue

    def close(self) -> None:
        """Safe to call twice."""
        if self._history is not None:
            self._history.close()
            self._history = None

    def _read_journal(self, camera: str) -> None:
        try:
            ring = RingReader.open(ring_path(self._settings.line.name, camera))
        except (RingMissing, RingError):
            return
        with ring:
            entries, self._announced[camera] = ring.journal_after(self._announced.get(camera, 0))
        for entry in entries:
            try:
                frame = decode(entry)
            except MessageError:
                continue  # of another version: alert cannot judge it either, and says so
            if isinstance(frame, FrameRef) and frame.id.epoch >= self._since_ms:
                self._open[frame.id.camera, frame.id.epoch].add(frame.id.sequence)
