"""The ledger's tables: one row per part, and what people said of parts.

SQLite, WAL. In `verdicts`, `row` grows in the order of commits. A row is never changed, but for where its archived
frame is. Percent, score, limit and region are those of the worst region; `regions` holds all of them as JSON:
`[{"name", "score", "limit", "floor", "percent"}, ...]`.

In `reviews` (`edge.alert.reviews`) the newest row of a part counts, and none is ever changed.

Schema 1 had no `reviews`; `migrate` brings such a ledger up to date in place.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from edge.errors import LedgerError
from edge.messages import Decision, FrameId, RegionScore, Verdict

SCHEMA = 2
OLDEST = 1  # schema that is still read, and brought up to date by whoever opens the ledger for writing
APPLICATION = 0x45444745  # "EDGE": tells our files from other people's SQLite databases

CREATE_REVIEWS = """
CREATE TABLE reviews (
    row            INTEGER PRIMARY KEY,
    camera         TEXT NOT NULL,
    epoch          INTEGER NOT NULL,
    sequence       INTEGER NOT NULL,
    truth          TEXT NOT NULL CHECK (truth IN ('good', 'defect')),
    kind           TEXT,
    reviewer       TEXT NOT NULL,
    reviewed_at_ns INTEGER NOT NULL,
    note           TEXT NOT NULL
) STRICT;
CREATE INDEX reviews_by_part ON reviews (camera, epoch, sequence, row);
"""

CREATE = f"""
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {SCHEMA};
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE verdicts (
    row           INTEGER PRIMARY KEY,
    camera        TEXT NOT NULL,
    epoch         INTEGER NOT NULL,
    sequence      INTEGER NOT NULL,
    part          INTEGER NOT NULL,
    decision      TEXT NOT NULL CHECK (decision IN ('pass', 'reject', 'unjudged')),
    reason        TEXT NOT NULL,
    percent       REAL,
    score         REAL,
    limit_        REAL,
    region        TEXT,
    bundle        TEXT,
    engine        TEXT,
    latency_ns    INTEGER NOT NULL,
    infer_ns      INTEGER,
    decided_at_ns INTEGER NOT NULL,
    camera_frame  INTEGER,
    encoder       INTEGER,
    origin        TEXT,
    regions       TEXT NOT NULL,
    archive_state TEXT NOT NULL,
    archive_path  TEXT,
    UNIQUE (camera, epoch, sequence)
) STRICT;
CREATE INDEX verdicts_by_time ON verdicts (decided_at_ns);
CREATE INDEX verdicts_by_part ON verdicts (part);
CREATE INDEX verdicts_faulty ON verdicts (decision, row) WHERE decision <> 'pass';
CREATE INDEX verdicts_queued ON verdicts (row) WHERE archive_state = 'queued';
{CREATE_REVIEWS}"""

COLUMNS = (
    "camera, epoch, sequence, part, decision, reason, percent, score, limit_, region, bundle, engine, latency_ns, "
    "infer_ns, decided_at_ns, camera_frame, encoder, origin, regions, archive_state, archive_path"
)
INSERT = f"INSERT INTO verdicts ({COLUMNS}) VALUES ({', '.join('?' * 21)}) ON CONFLICT DO NOTHING"  # noqa: S608
REVIEW_COLUMNS = "camera, epoch, sequence, truth, kind, reviewer, reviewed_at_ns, note"
INSERT_REVIEW = f"INSERT INTO reviews ({REVIEW_COLUMNS}) VALUES ({', '.join('?' * 8)})"  # noqa: S608


class ArchiveState(str, Enum):
    """What became of the archived frame of a part."""

    NONE = "none"  # the settings do not ask for it
    QUEUED = "queued"  # waits for the archive's writer
    SAVED = "saved"
    NO_FRAME = "no_frame"  # the part has no frame, or it was overwritten by then: the JSON alone is kept
    DROPPED = "dropped"  # the archive's queue was full
    FAILED = "failed"  # the archive could not be written
    LOST = "lost"  # the process ended before it was written
    REMOVED = "removed"  # made room for newer ones


@dataclass(frozen=True)
class Entry:
    """One row: a verdict, the scores of all regions, and what is archived of the part."""

    verdict: Verdict
    regions: list[dict[str, Any]] = field(default_factory=list)
    archive_state: ArchiveState = ArchiveState.NONE
    archive_path: str | None = None  # relative to the archive's folder, without suffix
    row: int = 0  # place in the ledger; 0 for an entry that was not read from it


def region_details(regions: Sequence[RegionScore], percents: Sequence[float]) -> list[dict[str, Any]]:
    """The scores of all regions as the `regions` column keeps them."""
    return [
        {"name": region.name, "score": region.score, "limit": region.limit, "floor": region.floor, "percent": percent}
        for region, percent in zip(regions, percents, strict=True)
    ]


def to_row(entry: Entry) -> tuple[Any, ...]:
    """The values of `COLUMNS`."""
    verdict = entry.verdict
    return (
        verdict.id.camera,
        verdict.id.epoch,
        verdict.id.sequence,
        verdict.part,
        verdict.decision.value,
        verdict.reason,
        verdict.percent,
        verdict.score,
        verdict.limit,
        verdict.region,
        verdict.bundle,
        verdict.engine,
        verdict.latency_ns,
        verdict.infer_ns,
        verdict.decided_at_ns,
        verdict.camera_frame,
        verdict.encoder,
        verdict.origin,
        json.dumps(entry.regions, separators=(",", ":")),
        entry.archive_state.value,
        entry.archive_path,
    )


def from_row(row: Sequence[Any], line: str) -> Entry:
    """The entry of a row `row, COLUMNS...`."""
    (number, camera, epoch, sequence, part, decision, reason, percent, score, limit, region, bundle, engine) = row[:13]
    latency, infer, decided_at, camera_frame, encoder, origin, regions, archive_state, archive_path = row[13:]
    verdict = Verdict(  # the table's own constraints have checked these when they were written
        id=FrameId(line=line, camera=camera, epoch=epoch, sequence=sequence),
        part=part,
        decision=Decision(decision),
        reason=reason,
        percent=percent,
        score=score,
        limit=limit,
        region=region,
        bundle=bundle,
        engine=engine,
        latency_ns=latency,
        infer_ns=infer,
        decided_at_ns=decided_at,
        camera_frame=camera_frame,
        encoder=encoder,
        origin=origin,
    )
    return Entry(verdict, json.loads(regions), ArchiveState(archive_state), archive_path, number)


def check_version(connection: sqlite3.Connection, path: Path, line: str | None) -> str:
    """The line whose ledger this is. Raises `LedgerError` for another program's or line's file, or a newer schema."""
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (schema,) = connection.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION:
        raise LedgerError(f"{path}: this is an SQLite database of another program; name another folder for the ledger")
    if not OLDEST <= schema <= SCHEMA:
        raise LedgerError(
            f"{path}: the ledger has schema {schema}, this program reads schemas {OLDEST} to {SCHEMA}; "
            "install the version that wrote it, or move the file aside to begin a new ledger"
        )
    (owner,) = connection.execute("SELECT value FROM about WHERE key = 'line'").fetchone() or ("",)
    if line is not None and owner != line:
        raise LedgerError(
            f"{path}: this is the ledger of line {owner!r}, not of {line!r}; give each line its own data_dir"
        )
    return str(owner)


def migrate(connection: sqlite3.Connection) -> None:
    """Brings the ledger up to this program's schema: in one transaction, whoever else has it open.

    Raises `sqlite3.Error`, and changes nothing then.
    """
    if _schema(connection) == SCHEMA:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        if _schema(connection) < SCHEMA:  # nobody was faster
            for statement in CREATE_REVIEWS.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {SCHEMA}")
        connection.execute("COMMIT")
    except sqlite3.Error:
        connection.execute("ROLLBACK")
        raise


def _schema(connection: sqlite3.Connection) -> int:
    (schema,) = connection.execute("PRAGMA user_version").fetchone()
    return int(schema)


def is_damage(error: sqlite3.Error) -> bool:
    """Whether SQLite says that the file itself is damaged, and not that it cannot be written now."""
    text = str(error)
    return any(sign in text for sign in ("malformed", "not a database", "file is encrypted", "unsupported file format"))
