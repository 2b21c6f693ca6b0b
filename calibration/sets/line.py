"""A line's own archive as a labelled set: its ledger read only, with labels that operators have given.

The line's verdicts are no labels: a set labelled by them would only show that a bundle agrees with itself. Labels are
what people said of archived parts (`edge verdicts confirm`), in the ledger's table `reviews (camera, epoch, sequence,
truth, kind, ...)`: truth `good` or `defect`, kind NULL or a name. Of several rows on one part the last one counts.

Each camera becomes a class, all of it for the test. Only parts whose frame the archive still holds are taken.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from calibration.errors import DataError
from calibration.sets.model import GOOD, ClassSet, Dataset, Item

LEDGER, ARCHIVE = "ledger.sqlite", "archive"
_APPLICATION, _SCHEMAS = 0x45444745, (1, 2)  # as the line writes them, see edge/alert/ledger_schema.py
_Identity = tuple[str, int, int]


def read_line(path: Path) -> Dataset | None:
    """The set of a line's data folder (or of its ledger file); None where there is no ledger.

    Raises `DataError` where the ledger is damaged or of another version, or nobody has labelled any archived frame.
    """
    ledger = path if path.is_file() else path / LEDGER
    if not ledger.is_file():
        return None
    frames, truth = _read(ledger)
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
            f"{ledger}: {len(frames)} archived frames below {archive}, {len(truth)} parts labelled by people, and none "
            "that is both; the line's own verdicts are no labels. Say what parts really were with `edge verdicts "
            "confirm LINE PART --truth good|defect`, or many at once with --csv FILE"
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
            if application != _APPLICATION or schema not in _SCHEMAS:
                raise DataError(
                    f"{ledger}: this is no ledger of a line that this version reads (it has schema {schema}, not "
                    f"{' or '.join(map(str, _SCHEMAS))})"
                )
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
