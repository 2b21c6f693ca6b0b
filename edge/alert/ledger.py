"""The ledger: one row per part in SQLite, written by the alert process alone.

Verdicts of one turn of the work loop are committed together, before any of them is published. WAL with
`synchronous=NORMAL`: a killed process loses nothing that was committed, a power cut may lose the last commits but
never the file. Checkpoints (the only fsyncs of a running ledger, but for one per log restart) run in a thread of
their own, so that a slow disk does not hold up a verdict.

A damaged file is moved aside, never deleted: `<name>.damaged-<UTC time>`, with its log. What can still be read of its
newest rows is copied into the new ledger, so that no part that has its verdict gets a second one.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType

from edge.alert.ledger_keeper import Keeper, connect, quick_check
from edge.alert.ledger_schema import (
    COLUMNS,
    CREATE,
    INSERT,
    INSERT_REVIEW,
    REVIEW_COLUMNS,
    ArchiveState,
    Entry,
    check_version,
    is_damage,
    migrate,
    to_row,
)
from edge.errors import LedgerError

CHECK_AT_ONCE_BYTES = 8 << 20  # takes about 0.1 s; larger ledgers are checked in the background after a crash
SALVAGED_ROWS = 65_536


class LedgerDamaged(LedgerError):
    """The file does not read as SQLite any more; `Ledger.replace` begins a new one."""


class Ledger:
    """The ledger of one line, open for writing. Made by `Ledger.open`; usable from one thread."""

    def __init__(self, path: Path, line: str, keep_days: float = 0) -> None:
        self.path = path
        self.line = line
        self.keep_days = keep_days
        self.fault = ""  # a damaged ledger that was moved aside, for health
        self.damaged = threading.Event()  # the background check found damage
        self.begun_ns = 0  # wall clock; 0 for one that goes on where a damaged one ended
        self._connection: sqlite3.Connection
        self._keeper: Keeper

    @classmethod
    def open(cls, path: Path, line: str, keep_days: float = 0) -> Ledger:
        """Opens or creates the ledger; a damaged one is moved aside and a new one begun.

        Rows older than `keep_days` go, a few at a time in the background; 0 keeps them for ever.

        Raises `LedgerError` where the folder cannot be written, or the file belongs to another line, program or
        schema.
        """
        ledger = cls(path, line, keep_days)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LedgerError(f"{path.parent}: cannot make the ledger's folder: {error.strerror}") from error
        try:
            ledger._open()
        except LedgerDamaged as error:
            ledger._begin_anew(str(error))
        return ledger

    def write(self, entries: Sequence[Entry]) -> list[bool]:
        """Commits `entries` together; tells which are new. A part that has a row keeps it: False.

        Raises `LedgerError` where nothing could be committed, `LedgerDamaged` where the file is damaged.
        """
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            cursor = self._connection.cursor()
            new = [cursor.execute(INSERT, to_row(entry)).rowcount == 1 for entry in entries]
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise self._error(error, "cannot be written") from error
        self._keeper.wrote(len(entries))
        return new

    def mark_archived(self, updates: Iterable[tuple[str, int, int, ArchiveState, str | None]]) -> None:
        """Notes what became of archived frames: camera, epoch, sequence, state, path. Raises `LedgerError`."""
        rows = [(state.value, path, camera, epoch, sequence) for camera, epoch, sequence, state, path in updates]
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.executemany(
                "UPDATE verdicts SET archive_state = ?, archive_path = ? "
                "WHERE camera = ? AND epoch = ? AND sequence = ?",
                rows,
            )
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back()
            raise self._error(error, "cannot be written") from error
        self._keeper.wrote(len(rows))

    def forget_queued(self) -> int:
        """At start: frames that a killed process had still to write are lost. Returns how many."""
        try:
            cursor = self._connection.execute(
                "UPDATE verdicts SET archive_state = 'lost' WHERE archive_state = 'queued'"
            )
        except sqlite3.Error as error:
            raise self._error(error, "cannot be written") from error
        return cursor.rowcount

    def epochs(self, camera: str, most: int = 8) -> list[int]:
        """The newest epochs of a camera that have rows, newest first."""
        found: list[int] = []
        below = 2**63 - 1
        try:
            while len(found) < most:
                (epoch,) = self._connection.execute(
                    "SELECT max(epoch) FROM verdicts WHERE camera = ? AND epoch < ?", (camera, below)
                ).fetchone()
                if epoch is None:
                    break
                found.append(epoch)
                below = epoch
        except sqlite3.Error as error:
            raise self._error(error, "cannot be read") from error
        return found

    def sequences(self, camera: str, epoch: int, most: int) -> list[int]:
        """The newest `most` sequences of an epoch that have rows, newest first."""
        try:
            return [
                sequence
                for (sequence,) in self._connection.execute(
                    "SELECT sequence FROM verdicts WHERE camera = ? AND epoch = ? ORDER BY sequence DESC LIMIT ?",
                    (camera, epoch, most),
                )
            ]
        except sqlite3.Error as error:
            raise self._error(error, "cannot be read") from error

    def replace(self, why: str) -> None:
        """Moves a damaged file aside and begins a new ledger with what could be saved. Raises `LedgerError`."""
        self._shut()
        self._begin_anew(why)

    def limit_pages(self, pages: int) -> None:
        """Holds the file to `pages` pages of 4 KiB; beyond, writing fails as on a full disk. 0 lifts the limit."""
        self._connection.execute(f"PRAGMA max_page_count = {pages or 2**32 - 2}")

    def close(self) -> None:
        """Closes the file; SQLite folds its log in. Safe to call twice."""
        self._shut()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- opening ----------------------------------------------------------------------------------------------------

    def _open(self, continues: bool = False) -> None:
        crashed = _size(_beside(self.path, "-wal")) > 0
        try:
            self._connection = connect(self.path)
        except sqlite3.Error as error:
            raise self._error(error, "cannot be opened") from error
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")
            if self._is_empty():
                self._create(0 if continues else time.time_ns())
            check_version(self._connection, self.path, self.line)
            migrate(self._connection)
            (begun,) = self._connection.execute("SELECT value FROM about WHERE key = 'begun_ns'").fetchone()
            self.begun_ns = int(begun)
            if crashed and _size(self.path) <= CHECK_AT_ONCE_BYTES:
                problem = quick_check(self._connection)
                if problem:
                    raise LedgerDamaged(f"{self.path}: the ledger is damaged: {problem}")
            # A statement that reads the table's root, so that a damaged one is found before the line starts.
            self._connection.execute("SELECT row FROM verdicts ORDER BY row DESC LIMIT 1").fetchone()
        except sqlite3.Error as error:
            self._connection.close()
            raise self._error(error, "cannot be opened") from error
        except LedgerError:
            self._connection.close()
            raise
        check = crashed and _size(self.path) > CHECK_AT_ONCE_BYTES
        self._keeper = Keeper(self.path, self.damaged, check, self.keep_days)

    def _is_empty(self) -> bool:
        (application,) = self._connection.execute("PRAGMA application_id").fetchone()
        (things,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return bool(application == 0 and things == 0)

    def _create(self, begun_ns: int) -> None:
        # One transaction: a process killed meanwhile leaves an empty file, which is created again.
        self._connection.executescript(f"BEGIN IMMEDIATE;\n{CREATE}")
        self._connection.execute("INSERT INTO about VALUES ('line', ?), ('begun_ns', ?)", (self.line, str(begun_ns)))
        self._connection.execute("COMMIT")

    def _begin_anew(self, why: str) -> None:
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        aside = _free_name(self.path.with_name(f"{self.path.name}.damaged-{stamp}"))
        try:
            for suffix in ("-wal", "-shm", ""):  # the database last: until then the next start finds the same damage
                if _beside(self.path, suffix).exists():
                    _beside(self.path, suffix).rename(_beside(aside, suffix))
        except OSError as error:
            raise LedgerError(f"{self.path}: damaged, and cannot be moved aside: {error.strerror}") from error
        self._open(continues=True)
        saved = self._salvage(aside)
        self.fault = f"{why}; moved to {aside.name}, {saved} of its newest rows were saved into a new ledger"
        self.damaged.clear()

    def _salvage(self, aside: Path) -> int:
        """Copies what still reads from a damaged file: the newest rows, newest first, and what people said of parts."""
        saved = 0
        with contextlib.suppress(sqlite3.Error, ValueError), contextlib.closing(connect(aside)) as damaged:
            self._connection.execute("BEGIN IMMEDIATE")
            with contextlib.suppress(sqlite3.Error):  # fewer and dearer than verdicts: an operator's work
                for row in damaged.execute(f"SELECT {REVIEW_COLUMNS} FROM reviews ORDER BY row"):  # noqa: S608
                    self._connection.execute(INSERT_REVIEW, row)
            for row in damaged.execute(
                f"SELECT {COLUMNS} FROM verdicts ORDER BY row DESC LIMIT {SALVAGED_ROWS}"  # noqa: S608
            ):
                saved += self._connection.execute(INSERT, row).rowcount
        if self._connection.in_transaction:
            self._connection.execute("COMMIT")
        return saved

    def _shut(self) -> None:
        if hasattr(self, "_keeper"):
            self._keeper.stop()
        if hasattr(self, "_connection"):
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def _error(self, error: sqlite3.Error, what: str) -> LedgerError:
        if is_damage(error):
            return LedgerDamaged(f"{self.path}: the ledger is damaged: {error}")
        return LedgerError(f"{self.path}: the ledger {what}: {error}")


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _free_name(path: Path) -> Path:
    return next(name for i in range(10_000) if not (name := path if i == 0 else _beside(path, f".{i}")).exists())


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return 0
