"""Reading the ledger, also while the line runs: filters, newest first, or following what is added.

Readers open the file read-only and never hold up the writer.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from edge.alert.ledger_schema import COLUMNS, Entry, check_version, from_row
from edge.errors import LedgerError
from edge.messages import Decision

READ_BUSY_MS = 2000


@dataclass(frozen=True)
class Query:
    """Which rows to read. Every filter that is not None must hold."""

    decision: Decision | None = None
    camera: str | None = None
    since_ns: int | None = None  # wall clock, inclusive
    until_ns: int | None = None  # wall clock, exclusive
    part: int | None = None
    bundle: str | None = None  # content id, or its beginning
    archived: bool | None = None  # whether a frame lies in the archive
    after_row: int | None = None  # rows added after this one
    limit: int | None = None


class History:
    """The ledger of one line, open for reading."""

    def __init__(self, path: Path) -> None:
        """Raises `LedgerError` where there is no ledger, or it cannot be read by this version."""
        self.path = path
        if not path.is_file():
            raise LedgerError(f"{path}: there is no ledger yet; it is begun when the line first runs")
        try:
            self._connection = self._connect()
            self.line = check_version(self._connection, path, None)
        except sqlite3.Error as error:
            raise LedgerError(f"{path}: the ledger cannot be read: {error}") from error

    def entries(self, query: Query | None = None) -> Iterator[Entry]:
        """Rows that match, newest first. Raises `LedgerError`."""
        return self._select(query or Query(), "DESC")

    def added(self, query: Query) -> Iterator[Entry]:
        """Rows that match, oldest first: with `after_row`, what has been added since. Raises `LedgerError`."""
        return self._select(query, "ASC")

    def entry(self, camera: str, epoch: int, sequence: int) -> Entry | None:
        """The row of one part. Raises `LedgerError`."""
        try:
            row = self._connection.execute(
                f"SELECT row, {COLUMNS} FROM verdicts WHERE camera = ? AND epoch = ? AND sequence = ?",  # noqa: S608
                (camera, epoch, sequence),
            ).fetchone()
        except (sqlite3.Error, OverflowError) as error:
            raise LedgerError(f"{self.path}: the ledger cannot be read: {error}") from error
        return None if row is None else from_row(row, self.line)

    def select_reviews(self, statement: str) -> Iterator[tuple[Any, ...]]:
        """Rows of a SELECT on `reviews`; none in a ledger older than reviews. Raises `LedgerError`."""
        try:
            if self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'reviews'").fetchone():
                yield from self._connection.execute(statement)
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: the ledger cannot be read: {error}") from error

    def last_row(self) -> int:
        """The number of the newest row, 0 where there is none. Raises `LedgerError`."""
        try:
            (row,) = self._connection.execute("SELECT max(row) FROM verdicts").fetchone()
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: the ledger cannot be read: {error}") from error
        return int(row or 0)

    def counts(self, query: Query | None = None) -> dict[Decision, int]:
        """How many rows match, per decision. Raises `LedgerError`."""
        where, values = _where(query or Query())
        try:
            rows = self._connection.execute(
                f"SELECT decision, count(*) FROM verdicts {where} GROUP BY decision",  # noqa: S608
                values,
            ).fetchall()
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: the ledger cannot be read: {error}") from error
        found = dict(rows)
        return {decision: int(found.get(decision.value, 0)) for decision in Decision}

    def close(self) -> None:
        """Safe to call twice."""
        self._connection.close()

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _select(self, query: Query, order: str) -> Iterator[Entry]:
        where, values = _where(query)
        limit = f"LIMIT {int(query.limit)}" if query.limit is not None else ""
        try:
            for row in self._connection.execute(
                f"SELECT row, {COLUMNS} FROM verdicts {where} ORDER BY row {order} {limit}",  # noqa: S608
                values,
            ):
                yield from_row(row, self.line)
        except sqlite3.Error as error:
            raise LedgerError(f"{self.path}: the ledger cannot be read: {error}") from error

    def _connect(self) -> sqlite3.Connection:
        uri = f"{self.path.resolve().as_uri()}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, timeout=READ_BUSY_MS / 1000, isolation_level=None)
        try:
            connection.execute("SELECT 1 FROM sqlite_master").fetchone()
        except sqlite3.OperationalError:
            # A read-only folder: SQLite cannot make its index of the log. Where there is no log, there is no writer.
            connection.close()
            if self.path.with_name(f"{self.path.name}-wal").exists():
                raise
            connection = sqlite3.connect(f"{uri}&immutable=1", uri=True, isolation_level=None)
        except sqlite3.Error:
            with contextlib.suppress(sqlite3.Error):
                connection.close()
            raise
        return connection


def _where(query: Query) -> tuple[str, list[Any]]:
    terms: list[str] = []
    values: list[Any] = []
    # The literal lets SQLite use the index of rejected and unjudged parts, which holds few of all rows.
    if query.decision is not None:
        terms.append(f"decision = '{query.decision.value}'")
        if query.decision is not Decision.PASS:
            terms.append("decision <> 'pass'")
    if query.archived is not None:
        terms.append("archive_state = 'saved'" if query.archived else "archive_state <> 'saved'")
    for column, sign, value in (
        ("camera", "=", query.camera),
        ("decided_at_ns", ">=", query.since_ns),
        ("decided_at_ns", "<", query.until_ns),
        ("part", "=", query.part),
        ("row", ">", query.after_row),
    ):
        if value is not None:
            terms.append(f"{column} {sign} ?")
            values.append(value)
    if query.bundle is not None:
        terms.append("substr(bundle, 1, ?) = ?")
        values += [len(query.bundle), query.bundle]
    return (f"WHERE {' AND '.join(terms)}" if terms else ""), values
