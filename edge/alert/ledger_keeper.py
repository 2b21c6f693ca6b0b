"""What a ledger needs done beside its commits, in a thread and a connection of its own.

Checkpoints fold SQLite's log into the file. A large file is checked for damage after a crash. Rows that are old enough
go, a few at a time, so that a line may run for years on one disk.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from pathlib import Path

from edge.alert.ledger_schema import is_damage

BUSY_MS = 50  # how long a commit waits for somebody else's lock: well below any deadline
CHECKPOINT_ROWS = 2000
CHECKPOINT_S = 10.0
FORGET_S = 3600.0  # between two looks for rows that are old enough to go
FORGET_ROWS = 500  # deleted at once: a commit that comes meanwhile waits a few milliseconds
KEEP_ROWS = 1 << 17  # never deleted, however old: the rings' journals may still hold their announcements
DAY_NS = 86_400_000_000_000


class Keeper:
    """The thread that looks after the ledger at `path`. `keep_days` 0 keeps rows for ever."""

    def __init__(
        self, path: Path, damaged: threading.Event, check: bool, keep_days: float = 0, keep_rows: int = KEEP_ROWS
    ) -> None:
        self._path = path
        self._damaged = damaged
        self._check = check
        self._keep_days = keep_days
        self._keep_rows = keep_rows
        self._rows = 0
        self._wake = threading.Event()
        self._stopping = False
        self.forgot = threading.Event()  # set after each look for old rows
        self._thread = threading.Thread(target=self._run, name="ledger-keeper", daemon=True)
        self._thread.start()

    def wrote(self, rows: int) -> None:
        """So many rows were committed."""
        self._rows += rows
        if self._rows >= CHECKPOINT_ROWS:
            self._wake.set()

    def stop(self) -> None:
        """Ends the thread; what it was doing is given up."""
        self._stopping = True
        self._wake.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _run(self) -> None:
        try:
            connection = connect(self._path)
        except sqlite3.Error:
            return
        with contextlib.closing(connection):
            # A check of a large file takes seconds: it ends early when the ledger is closed.
            connection.set_progress_handler(lambda: self._stopping, 100_000)
            if self._check and quick_check(connection):
                self._damaged.set()
            forget_at = 0.0
            while not self._stopping:
                # A full disk fails either: the log and the old rows stay, and it is tried again.
                if self._keep_days and time.monotonic() >= forget_at:
                    forget_at = time.monotonic() + FORGET_S
                    with contextlib.suppress(sqlite3.Error):
                        self._forget(connection, time.time_ns() - int(self._keep_days * DAY_NS))
                    self.forgot.set()
                self._wake.wait(CHECKPOINT_S)
                self._wake.clear()
                rows, self._rows = self._rows, 0
                if rows and not self._stopping:
                    with contextlib.suppress(sqlite3.Error):
                        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def _forget(self, connection: sqlite3.Connection, before_ns: int) -> None:
        """Deletes rows decided before `before_ns`, but for the newest; SQLite uses their room again."""
        deleted = FORGET_ROWS
        while deleted == FORGET_ROWS and not self._stopping:
            deleted = connection.execute(
                "DELETE FROM verdicts WHERE row IN (SELECT row FROM verdicts WHERE decided_at_ns < ? "
                "AND row <= (SELECT max(row) FROM verdicts) - ? LIMIT ?)",
                (before_ns, self._keep_rows, FORGET_ROWS),
            ).rowcount
            self._wake.wait(0.05)  # commits first


def quick_check(connection: sqlite3.Connection) -> str:
    """What SQLite's own check finds wrong with the file, or "" where it is sound."""
    try:
        (result,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    except sqlite3.OperationalError as error:
        return str(error) if is_damage(error) else ""  # interrupted, or the disk: no word on the file
    except sqlite3.DatabaseError as error:
        return str(error)
    return "" if result == "ok" else str(result)


def connect(path: Path) -> sqlite3.Connection:
    """A connection as the ledger uses it. Raises `sqlite3.Error`."""
    connection = sqlite3.connect(path, timeout=BUSY_MS / 1000, isolation_level=None, check_same_thread=False)
    try:
        connection.execute(f"PRAGMA busy_timeout = {BUSY_MS}")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("PRAGMA temp_store = MEMORY")
    except sqlite3.Error:
        connection.close()
        raise
    return connection
