"""A line's own archive as a labelled set: its ledger read only, with labels that operators have given.

The line's verdicts are no labels: a set labelled by them would only show that a bundle agrees with itself. Labels are
taken from what people said of archived parts, either

* in the ledger's table `reviews (camera, epoch, sequence, truth, kind)`, truth `good` or `defect`, kind NULL or a
  name; where a part was reviewed twice, the later row counts; or
* in `labels.csv` beside the ledger, with the columns camera, epoch, sequence, label, where the label is `good` or
  names the defect. It overrides the ledger.

Each camera becomes a class, all of it for the test. Only parts whose frame the archive still holds are taken.
"""

from __future__ import annotations

import csv
import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from calibration.errors import DataError
from calibration.sets.model import GOOD, GOOD_NAMES, ClassSet, Dataset, Item

LEDGER, ARCHIVE, LABELS = "ledger.sqlite", "archive", "labels.csv"
_APPLICATION, _SCHEMA = 0x45444745, 1  # as the line writes them, see edge/alert/ledger_schema.py
_Identity = tuple[str, int, int]


def read_line(path: Path) -> Dataset | None:
    """The set of a line's data folder (or of its ledger file); None where there is no ledger.

    Raises `DataError` where the ledger is damaged or of another version, or nobody has labelled any archived frame.
    """
    ledger = path if path.is_file() else path / LEDGER
    if not ledger.is_file():
        return None
    frames, truth = _read(ledger)
    truth.update(_labels(ledger.with_name(LABELS)))
    archive = ledger.parent / ARCHIVE
    items: dict[str, list[Item]] = {}
    gone = 0
    for identity, kind in sorted(truth.items()):
        frame = frames.get(identity)
        # Not with_suffix: the names hold dots of their own.
        file = archive / f"{frame}.png" if frame is not None else None
        if file is None or not file.is_file():
            gone += 1
        else:
            items.setdefault(identity[0], []).append(Item(file, kind))
    if not items:
        raise DataError(
            f"{ledger}: {len(frames)} archived frames, {len(truth)} labels by operators, and none that has both; the "
            f"line's own verdicts are no labels. Review parts on the line, or write {ledger.with_name(LABELS)} with "
            "the columns camera, epoch, sequence, label (good, or the name of the defect)"
        )
    notes = [f"labels by operators of {sum(map(len, items.values()))} of {len(frames)} archived frames"]
    if gone:
        notes.append(f"{gone} labelled parts are not in the archive any more, or were never archived")
    classes = tuple(ClassSet(camera, (), tuple(found)) for camera, found in sorted(items.items()))
    return Dataset(path, "a line's ledger and archive", classes, tuple(notes))


def _read(ledger: Path) -> tuple[dict[_Identity, str], dict[_Identity, str]]:
    """(path of each archived frame, label of each reviewed part)."""
    try:
        # Read only, but able to see what a running line has committed to the write-ahead log.
        with closing(sqlite3.connect(f"file:{quote(str(ledger.resolve()))}?mode=ro", uri=True, timeout=10)) as db:
            (application,) = db.execute("PRAGMA application_id").fetchone()
            (schema,) = db.execute("PRAGMA user_version").fetchone()
            if (application, schema) != (_APPLICATION, _SCHEMA):
                raise DataError(f"{ledger}: this is no ledger of a line with schema {_SCHEMA} (it has {schema})")
            frames = {
                (str(camera), int(epoch), int(sequence)): str(path)
                for camera, epoch, sequence, path in db.execute(
                    "SELECT camera, epoch, sequence, archive_path FROM verdicts "
                    "WHERE archive_state = 'saved' AND archive_path IS NOT NULL"
                )
            }
            if not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'reviews'").fetchone():
                return frames, {}
            reviews = db.execute("SELECT camera, epoch, sequence, truth, kind FROM reviews ORDER BY rowid").fetchall()
    except sqlite3.Error as error:
        raise DataError(f"{ledger}: this ledger cannot be read ({error})") from error
    truth = {
        (str(camera), int(epoch), int(sequence)): GOOD if said == "good" else str(kind or "defect")
        for camera, epoch, sequence, said, kind in reviews
    }
    return frames, truth


def _labels(file: Path) -> dict[_Identity, str]:
    if not file.is_file():
        return {}
    found: dict[_Identity, str] = {}
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            for line, row in enumerate(csv.DictReader(text), start=2):
                try:
                    identity = (row["camera"], int(row["epoch"]), int(row["sequence"]))
                    label = row["label"].strip()
                except (KeyError, ValueError, AttributeError, TypeError) as error:
                    raise DataError(f"{file}:{line}: needs camera, epoch, sequence (numbers) and label") from error
                if not label:
                    raise DataError(f"{file}:{line}: the label is empty; write good, or the name of the defect")
                found[identity] = GOOD if label.lower() in GOOD_NAMES else label
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error
    return found
