from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from edge.alert.history import History, Query
from edge.alert.ledger import Ledger, LedgerDamaged
from edge.alert.ledger_schema import ArchiveState, Entry
from edge.errors import LedgerError
from edge.messages import Decision

S = 1_000_000_000
T0 = 1_700_000_000 * S


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "line" / "ledger.sqlite"


def fill(path: Path, make_verdict: Any, count: int = 12) -> list[Entry]:
    kinds = ["pass", "pass", "reject", "unjudged"]
    entries = [
        Entry(
            make_verdict(i, kinds[i % 4], camera="top" if i % 2 else "side", bundle=f"{i % 3}abc"),
            [{"name": "part", "score": 0.5, "limit": 1.0, "floor": 0.0, "percent": 50.0}],
            ArchiveState.NONE if kinds[i % 4] == "pass" else ArchiveState.QUEUED,
        )
        for i in range(count)
    ]
    with Ledger.open(path, "press") as ledger:
        assert ledger.write(entries) == [True] * count
    return entries


def test_what_is_written_reads_the_same(path: Path, make_verdict: Any) -> None:
    entries = fill(path, make_verdict)
    with History(path) as history:
        assert history.line == "press"
        read = list(history.entries())
    assert [entry.verdict for entry in reversed(read)] == [entry.verdict for entry in entries]
    assert [(e.regions, e.archive_state) for e in reversed(read)] == [(e.regions, e.archive_state) for e in entries]
    assert [entry.row for entry in read] == list(range(12, 0, -1))


def test_one_row_per_part_the_first_one(path: Path, make_verdict: Any) -> None:
    with Ledger.open(path, "press") as ledger:
        assert ledger.write([Entry(make_verdict(0, "pass")), Entry(make_verdict(0, "reject"))]) == [True, False]
        assert ledger.write([Entry(make_verdict(0, "unjudged")), Entry(make_verdict(1, "pass"))]) == [False, True]
        assert ledger.write([Entry(make_verdict(0, "reject", epoch=2000))]) == [True]
    with History(path) as history:
        found = [(e.verdict.id.epoch, e.verdict.id.sequence, e.verdict.decision.value) for e in history.entries()]
        assert found == [(2000, 0, "reject"), (1000, 1, "pass"), (1000, 0, "pass")]


def test_filters(path: Path, make_verdict: Any) -> None:
    entries = fill(path, make_verdict, 24)

    def sequences(**query: Any) -> list[int]:
        with History(path) as history:
            return [entry.verdict.id.sequence for entry in history.entries(Query(**query))]

    assert sequences(decision=Decision.REJECT) == [22, 18, 14, 10, 6, 2]
    assert sequences(decision=Decision.PASS, limit=3) == [21, 20, 17]
    assert sequences(camera="side", limit=2) == [22, 20]
    assert sequences(since_ns=entries[20].verdict.decided_at_ns) == [23, 22, 21, 20]
    assert sequences(until_ns=entries[2].verdict.decided_at_ns) == [1, 0]
    assert sequences(part=5) == [4]
    assert sequences(bundle="1a", limit=2) == [22, 19]
    assert sequences(bundle="%") == []
    assert sequences(after_row=22) == [23, 22]
    assert sequences(archived=True) == []
    assert sequences(decision=Decision.UNJUDGED, camera="top", limit=1) == [23]
    with History(path) as history:
        assert history.counts() == {Decision.PASS: 12, Decision.REJECT: 6, Decision.UNJUDGED: 6}
        assert [e.verdict.id.sequence for e in history.added(Query(after_row=20))] == [20, 21, 22, 23]


def test_rejects_are_found_by_index(path: Path, make_verdict: Any) -> None:
    fill(path, make_verdict)
    connection = sqlite3.connect(path)
    plan = connection.execute(
        "EXPLAIN QUERY PLAN SELECT * FROM verdicts WHERE decision = 'reject' AND decision <> 'pass' ORDER BY row DESC"
    ).fetchall()
    connection.close()
    assert "verdicts_faulty" in str(plan)
    assert "TEMP B-TREE" not in str(plan)


def test_archive_state(path: Path, make_verdict: Any) -> None:
    fill(path, make_verdict)
    with Ledger.open(path, "press") as ledger:
        ledger.mark_archived([("side", 1000, 2, ArchiveState.SAVED, "2023-11-14/side/x")])
        assert ledger.forget_queued() == 5
    with History(path) as history:
        (entry,) = history.entries(Query(archived=True))
        assert entry.archive_path == "2023-11-14/side/x"
        lost = [e.verdict.id.sequence for e in history.entries() if e.archive_state is ArchiveState.LOST]
        assert lost == [11, 10, 7, 6, 3]


def test_reader_sees_what_is_added_while_the_line_runs(path: Path, make_verdict: Any) -> None:
    with Ledger.open(path, "press") as ledger:
        ledger.write([Entry(make_verdict(0))])
        with History(path) as history:
            rows = history.entries()
            assert next(rows).verdict.id.sequence == 0  # a reader in the middle of its rows
            ledger.write([Entry(make_verdict(1)), Entry(make_verdict(2))])
            assert list(rows) == []
            assert history.last_row() == 3
            assert [e.verdict.id.sequence for e in history.added(Query(after_row=1))] == [1, 2]


def test_recovery_queries(path: Path, make_verdict: Any) -> None:
    with Ledger.open(path, "press") as ledger:
        ledger.write([Entry(make_verdict(i, epoch=e)) for e in (10, 30, 20) for i in (0, 1, 5)])
        assert ledger.epochs("top") == [30, 20, 10]
        assert ledger.epochs("top", most=2) == [30, 20]
        assert ledger.epochs("side") == []
        assert ledger.sequences("top", 20, most=2) == [5, 1]


KILLED_WRITER = """
import sys
from pathlib import Path
from edge.alert.ledger import Ledger
from edge.alert.ledger_schema import Entry
from edge.messages import Decision, FrameId, Verdict
ledger = Ledger.open(Path(sys.argv[1]), "press")
for i in range(10**9):
    ledger.write([Entry(Verdict(id=FrameId(line="press", camera="top", epoch=1, sequence=5 * i + k), part=i,
        decision=Decision.PASS, reason="", percent=1.0, score=1.0, limit=1.0, region="part", bundle="b", engine="e",
        latency_ns=1, infer_ns=1, decided_at_ns=1)) for k in range(5)])
    print(5 * i + 4, flush=True)
"""


def test_killed_writer_loses_nothing_it_had_committed(path: Path) -> None:
    command = [sys.executable, "-c", KILLED_WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout
        for _ in range(200):
            writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        reported = int(["999", *writer.stdout.read().split()][-1])
    assert path.with_name(path.name + "-wal").stat().st_size > 0
    with Ledger.open(path, "press") as ledger:
        assert ledger.fault == ""
        written = ledger.sequences("top", 1, most=10**9)
    assert written[-1] == 0
    assert len(written) == written[0] + 1 >= reported + 1
    assert len(written) % 5 == 0, "a group commit was torn"


def test_killed_while_it_was_created(path: Path) -> None:
    """Killed between the switch to WAL and the tables: the file has a header and nothing else."""
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.close()
    with Ledger.open(path, "press") as ledger:
        assert ledger.epochs("top") == []


def test_garbage_is_moved_aside_and_a_new_ledger_begun(path: Path, make_verdict: Any) -> None:
    path.parent.mkdir()
    path.write_bytes(b"not a database, for sure" * 1000)
    with Ledger.open(path, "press") as ledger:
        assert "moved to" in ledger.fault
        assert ledger.write([Entry(make_verdict())]) == [True]
    (aside,) = path.parent.glob("*.damaged-*")
    assert aside.read_bytes().startswith(b"not a database")


def test_damaged_after_a_crash_keeps_what_still_reads(path: Path, make_verdict: Any) -> None:
    """The middle of the file is overwritten: found at the next start, and the newest rows are carried over."""
    with Ledger.open(path, "press") as ledger:
        for start in range(0, 4000, 500):
            ledger.write([Entry(make_verdict(i)) for i in range(start, start + 500)])
    pages = bytearray(path.read_bytes())
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    root = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'verdicts'").fetchone()[0]
    connection.close()
    # An early leaf of the table: the first child page that its root (an inner page) points to.
    first_cell = int.from_bytes(pages[(root - 1) * 4096 + 12 : (root - 1) * 4096 + 14], "big")
    leaf = int.from_bytes(pages[(root - 1) * 4096 + first_cell :][:4], "big")
    pages[(leaf - 1) * 4096 : leaf * 4096] = os.urandom(4096)
    path.write_bytes(pages)
    path.with_name(path.name + "-wal").write_bytes(b"\0" * 100)  # a log left behind tells of a crash
    with Ledger.open(path, "press") as ledger:
        assert "moved to" in ledger.fault
        saved = ledger.sequences("top", 1000, most=10**6)
        assert saved[0] == 3999
        assert 1000 < len(saved) < 4000
        assert ledger.write([Entry(make_verdict(3999, "reject"))]) == [False]


def test_large_ledger_is_checked_beside(path: Path, make_verdict: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a crash, without holding up the start; an index that lost a page shows only to the full check."""
    with Ledger.open(path, "press") as ledger:
        ledger.write([Entry(make_verdict(i)) for i in range(2000)])
    connection = sqlite3.connect(path)
    (root,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'verdicts_by_part'").fetchone()
    connection.close()
    with path.open("r+b") as file:
        file.seek((root - 1) * 4096)
        file.write(b"\0" * 4096)
    path.with_name(path.name + "-wal").write_bytes(b"\0" * 100)
    monkeypatch.setattr("edge.alert.ledger.CHECK_AT_ONCE_BYTES", 0)
    with Ledger.open(path, "press") as ledger:
        assert ledger.fault == ""
        assert ledger.damaged.wait(20)
        ledger.replace("found by the check")
        assert ledger.sequences("top", 1000, 9999) == list(range(1999, -1, -1))
        assert not ledger.damaged.is_set()


def test_damage_found_while_running(path: Path, make_verdict: Any) -> None:
    with Ledger.open(path, "press") as ledger:
        ledger.write([Entry(make_verdict(i)) for i in range(2000)])
    with Ledger.open(path, "press") as ledger:
        size = path.stat().st_size
        with path.open("r+b") as file:
            file.seek(4096)
            file.write(os.urandom(size - 4096))
        with pytest.raises(LedgerDamaged):
            ledger.write([Entry(make_verdict(5000 + i)) for i in range(2000)])
        ledger.replace("the ledger is damaged")
        assert "moved to" in ledger.fault
        assert ledger.write([Entry(make_verdict(5000))]) == [True]


def test_other_peoples_files_are_refused(path: Path, tmp_path: Path) -> None:
    Ledger.open(path, "press").close()
    with pytest.raises(LedgerError, match="ledger of line 'press', not of 'mill'"):
        Ledger.open(path, "mill")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 7")
    connection.close()
    for opening in (lambda: Ledger.open(path, "press"), lambda: History(path)):
        with pytest.raises(LedgerError, match="schema 7, this program reads schemas 1 to 2"):
            opening()
    other = tmp_path / "other.sqlite"
    connection = sqlite3.connect(other)
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    with pytest.raises(LedgerError, match="another program"):
        Ledger.open(other, "press")
    with pytest.raises(LedgerError, match="no ledger yet"):
        History(tmp_path / "none.sqlite")


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError, match="cannot make the ledger's folder"):
        Ledger.open(tmp_path / "file" / "ledger.sqlite", "press")


def test_full_file_fails_whole_and_recovers(path: Path, make_verdict: Any) -> None:
    """SQLITE_FULL for real, by a limit of pages: nothing of the group is kept, and writing goes on with room."""
    with Ledger.open(path, "press") as ledger:
        ledger.write([Entry(make_verdict(0))])
        ledger.limit_pages(12)
        with pytest.raises(LedgerError, match="full"):
            ledger.write([Entry(make_verdict(i)) for i in range(1, 2000)])
        assert ledger.sequences("top", 1000, 9999) == [0]
        ledger.limit_pages(0)
        assert all(ledger.write([Entry(make_verdict(i)) for i in range(1, 2000)]))


def test_full_disk(tmp_path: Path, make_verdict: Any) -> None:
    """A tmpfs of 1 MiB that really is full, and has room again."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a small tmpfs needs root")
    try:
        with Ledger.open(folder / "ledger.sqlite", "press") as ledger:
            ledger.write([Entry(make_verdict(0))])
            ballast = folder / "ballast"
            with ballast.open("wb") as file, contextlib.suppress(OSError):
                while os.write(file.fileno(), b"\0" * 4096):
                    pass
            with pytest.raises(LedgerError, match="full"):
                ledger.write([Entry(make_verdict(i)) for i in range(1, 300)])
            ballast.unlink()
            assert all(ledger.write([Entry(make_verdict(i)) for i in range(1, 300)]))
        with History(folder / "ledger.sqlite") as history:
            assert len(list(history.entries())) == 300
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_locked_by_somebody_else_is_an_error_not_a_wait(path: Path, make_verdict: Any) -> None:
    with Ledger.open(path, "press") as ledger:
        rude = sqlite3.connect(path, isolation_level=None)
        rude.execute("BEGIN IMMEDIATE")
        with pytest.raises(LedgerError, match="locked"):
            ledger.write([Entry(make_verdict())])
        rude.execute("ROLLBACK")
        rude.close()
        assert ledger.write([Entry(make_verdict())]) == [True]


def test_log_is_folded_in_beside_the_writer(path: Path, make_verdict: Any) -> None:
    with Ledger.open(path, "press") as ledger:
        before = path.stat().st_size
        done = threading.Event()
        for i in range(30):
            ledger.write([Entry(make_verdict(100 * i + k)) for k in range(100)])
        for _ in range(500):
            if path.stat().st_size > before:
                break
            done.wait(0.01)
        assert path.stat().st_size > before


def test_read_only_folder_reads(path: Path, make_verdict: Any, tmp_path: Path) -> None:
    fill(path, make_verdict)
    folder = tmp_path / "ro"
    folder.mkdir()
    if subprocess.run(["mount", "--bind", path.parent, folder], capture_output=True).returncode:
        pytest.skip("a read-only mount needs root")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", folder], check=True)
        with History(folder / path.name) as history:
            assert len(list(history.entries())) == 12
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)
