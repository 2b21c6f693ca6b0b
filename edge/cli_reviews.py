"""`edge verdicts confirm` and `edge verdicts reviews`: what parts really were, said by people."""

from __future__ import annotations

import csv
import getpass
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from edge.alert.reviews import Review, Reviews, Truth, confusion, read_reviews
from edge.errors import LedgerError
from edge.messages import Decision
from edge.moments import iso

if TYPE_CHECKING:
    from edge.alert.ledger_schema import Entry

GOOD_NAMES = frozenset({"good", "ok", "normal"})
"""Labels that mean good, in lower case, as in image sets."""

LineName = Annotated[str, typer.Argument(metavar="LINE", help="Settings file, or name of an installed line.")]
CameraName = Annotated[Optional[str], typer.Option(help="Only parts of this camera.")]  # noqa: UP045


def confirm(
    line: LineName,
    parts: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer evaluates this on Python 3.10 too
        typer.Argument(
            metavar="PART",
            help="Camera:epoch:sequence, a file of the archive, or a part's number where only one part has it.",
        ),
    ] = None,
    truth: Annotated[
        Optional[Truth],  # noqa: UP045
        typer.Option(help="What these parts really are.", case_sensitive=False),
    ] = None,
    kind: Annotated[Optional[str], typer.Option(help="Name of the defect, such as scratch.")] = None,  # noqa: UP045
    by: Annotated[Optional[str], typer.Option(metavar="NAME", help="Who says so. [you]")] = None,  # noqa: UP045
    note: Annotated[str, typer.Option(help="Anything worth keeping.")] = "",
    camera: CameraName = None,
    csv_file: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(
            "--csv",
            metavar="FILE",
            help="Many at once: columns camera, epoch, sequence, and truth (good, defect or empty) with kind, or label "
            "(good, or the name of the defect); also by and note. What `edge verdicts LINE --csv` prints, with a "
            "column added, will do.",
        ),
    ] = None,
) -> None:
    """Say of judged parts what they really are: good, or a defect.

    The last word on a part counts, earlier ones are kept. With the archive's frames they are a labelled set for
    `calibrate evaluate` and `calibrate limit`. The line may run meanwhile.
    """
    from edge.run import find_line
    from edge.settings import load_settings

    if bool(parts) is (csv_file is not None):
        raise typer.BadParameter("name parts with --truth, or give --csv FILE")
    if parts and truth is None:
        raise typer.BadParameter("say what these parts are: --truth good or --truth defect")
    if csv_file is not None and (truth is not None or kind is not None):
        raise typer.BadParameter("--truth and --kind belong to parts named here; the file says it for its own")
    settings = load_settings(find_line(line))
    said_by, now = by or _user(), time.time_ns()
    with Reviews(settings.paths.ledger) as writer:
        if csv_file is not None:
            found = list(_from_csv(csv_file, said_by, now))
        else:
            assert truth is not None
            named = dict.fromkeys(_identity(writer, part, camera) for part in parts or ())
            found = [Review(*identity, truth, kind, said_by, now, note) for identity in named]
        entries = writer.add(found)
    _say(found, entries)


def reviews(
    line: LineName,
    camera: CameraName = None,
    every: Annotated[bool, typer.Option("--all", help="Also earlier words on the same parts.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values with a header.")] = False,
) -> None:
    """Show what people said of parts, beside the line's verdicts."""
    from edge.alert.history import History
    from edge.run import find_line
    from edge.settings import load_settings

    if as_json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv")
    settings = load_settings(find_line(line))
    if camera is not None:
        settings.camera(camera)
    with History(settings.paths.ledger) as history:
        pairs = [
            (review, history.entry(*review.part))
            for review in read_reviews(history, every)
            if camera is None or review.camera == camera
        ]
    if as_json:
        for review, entry in pairs:
            print(json.dumps(_record(review, entry), ensure_ascii=False))
    elif as_csv:
        writer = csv.DictWriter(sys.stdout, [*_COLUMNS], lineterminator="\n")
        writer.writeheader()
        writer.writerows(_record(review, entry) for review, entry in pairs)
    else:
        _show(pairs)


_COLUMNS = (
    *("camera", "epoch", "sequence", "part", "decision", "percent", "truth", "kind"),
    *("by", "reviewed_at", "note", "archive_state"),
)


def _record(review: Review, entry: Entry | None) -> dict[str, Any]:
    verdict = entry.verdict if entry is not None else None
    values = (
        *review.part,
        verdict.part if verdict else None,
        verdict.decision.value if verdict else None,
        verdict.percent if verdict else None,
        review.truth.value,
        review.kind,
        review.reviewer,
        iso(review.reviewed_at_ns),
        review.note,
        entry.archive_state.value if entry is not None else None,
    )
    return dict(zip(_COLUMNS, values, strict=True))


def _show(pairs: Sequence[tuple[Review, Entry | None]]) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=200)
    if pairs:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1))
        for name in ("part", "verdict", "% of limit", "truth", "by", "when", "note"):
            table.add_column(name, justify="right" if name == "% of limit" else "left", overflow="fold")
        for review, entry in pairs:
            verdict = entry.verdict if entry is not None else None
            table.add_row(
                ":".join(map(str, review.part)),
                verdict.decision.value if verdict else "forgotten",
                "" if verdict is None or verdict.percent is None else f"{verdict.percent:.0f}",
                review.kind or review.truth.value,
                review.reviewer,
                iso(review.reviewed_at_ns)[:16].replace("T", " "),
                review.note,
            )
        console.print(table)
    counts = confusion(pairs)
    good = sum(review.truth is Truth.GOOD for review, _ in pairs)
    print(
        f"{len(pairs)} reviews: {good} good, {len(pairs) - good} defects; the line rejected "
        f"{counts[Decision.REJECT, Truth.GOOD]} of the good and passed {counts[Decision.PASS, Truth.DEFECT]} of the "
        "defects"
    )


def _say(found: Sequence[Review], entries: Sequence[Entry]) -> None:
    counts = confusion(list(zip(found, entries, strict=True)))
    good = sum(review.truth is Truth.GOOD for review in found)
    print(f"{len(found)} parts confirmed: {good} good, {len(found) - good} defects")
    for decision, truth, words in (
        (Decision.REJECT, Truth.GOOD, "good parts had been rejected"),
        (Decision.PASS, Truth.DEFECT, "defects had been passed"),
    ):
        if counts[decision, truth]:
            print(f"{counts[decision, truth]} {words}")
    kept = sum(entry.archive_state.value == "saved" for entry in entries)
    if kept < len(entries):
        print(f"{len(entries) - kept} of them have no frame in the archive: they are no use for `calibrate evaluate`")


def _identity(writer: Reviews, text: str, camera: str | None) -> tuple[str, int, int]:
    """The part that `text` names. Raises `LedgerError`."""
    if text.isdecimal():
        return writer.find(int(text), camera)
    name, _, rest = text.rpartition(":")
    name, _, epoch = name.rpartition(":")
    if name and epoch.isdecimal() and rest.isdecimal():
        return name, int(epoch), int(rest)
    path = Path(text).absolute()
    fields = path.name.split("-")  # time-epoch-sequence-decision.suffix, in a folder named by the camera
    if len(fields) == 4 and fields[1].isdecimal() and fields[2].isdecimal():
        return path.parent.name, int(fields[1]), int(fields[2])
    raise LedgerError(f"{text!r} names no part: give camera:epoch:sequence, a file of the archive, or a part's number")


def _from_csv(file: Path, by: str, now: int) -> Iterator[Review]:
    """The rows of a file that say something. Raises `LedgerError` naming file and line."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            rows = csv.DictReader(text)
            columns = set(rows.fieldnames or ())
            if not {"camera", "epoch", "sequence"} <= columns or not columns & {"truth", "label"}:
                raise LedgerError(f"{file}: needs the columns camera, epoch, sequence, and truth or label")
            for row in rows:
                review = _from_row(row, f"{file}:{rows.line_num}", by, now)
                if review is not None:
                    yield review
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise LedgerError(f"{file}: cannot be read: {error}") from error


def _from_row(row: dict[str, str], where: str, by: str, now: int) -> Review | None:
    def cell(name: str) -> str:
        return (row.get(name) or "").strip()

    said, kind = cell("truth").lower(), cell("kind") or None
    if not said and (label := cell("label")):
        said = "good" if label.lower() in GOOD_NAMES else "defect"
        kind = None if said == "good" or label.lower() == "defect" else label
    if not said:
        return None
    try:
        truth = Truth(said)
        identity = cell("camera"), int(cell("epoch")), int(cell("sequence"))
    except ValueError as error:
        raise LedgerError(
            f"{where}: epoch and sequence must be numbers, and truth good or defect; found {said!r}"
        ) from error
    review = Review(*identity, truth, kind, cell("by") or by, now, cell("note"))
    try:
        review.check()
    except LedgerError as error:
        raise LedgerError(f"{where}: {error}") from error
    return review


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError) as error:
        raise LedgerError("who says so? There is no user name here; give --by NAME") from error
