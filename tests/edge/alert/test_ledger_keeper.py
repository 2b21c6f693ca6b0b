from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

from edge.alert.ledger import Ledger
from edge.alert.ledger_keeper import DAY_NS, FORGET_ROWS, Keeper
from edge.alert.ledger_schema import Entry


def kept(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as connection:
        return [sequence for (sequence,) in connection.execute("SELECT sequence FROM verdicts ORDER BY row")]


def test_old_rows_go_and_the_newest_stay_however_old(tmp_path: Path, make_verdict) -> None:
    path = tmp_path / "ledger.sqlite"
    now = time.time_ns()
    old = FORGET_ROWS + 30  # more than one turn deletes
    with Ledger.open(path, "press") as ledger:
        ledger.write([Entry(make_verdict(i, decided_at_ns=now - 11 * DAY_NS)) for i in range(old)])
        ledger.write([Entry(make_verdict(old + i, decided_at_ns=now)) for i in range(10)])

    keeper = Keeper(path, threading.Event(), check=False, keep_days=10, keep_rows=25)
    assert keeper.forgot.wait(30)
    keeper.stop()

    # 10 new rows, and of the old ones the 15 that make up the 25 newest.
    assert kept(path) == list(range(old - 15, old + 10))


def test_zero_days_keep_everything(tmp_path: Path, make_verdict) -> None:
    path = tmp_path / "ledger.sqlite"
    with Ledger.open(path, "press", keep_days=0) as ledger:
        ledger.write([Entry(make_verdict(i, decided_at_ns=1)) for i in range(5)])
    assert kept(path) == [0, 1, 2, 3, 4]


def test_a_ledger_that_is_written_meanwhile_loses_nothing(tmp_path: Path, make_verdict) -> None:
    path = tmp_path / "ledger.sqlite"
    now = time.time_ns()
    with Ledger.open(path, "press") as ledger:
        ledger.write([Entry(make_verdict(i, decided_at_ns=1)) for i in range(3000)])
        keeper = Keeper(path, threading.Event(), check=False, keep_days=1, keep_rows=0)
        for i in range(3000, 3100):
            assert ledger.write([Entry(make_verdict(i, decided_at_ns=now))]) == [True]
        assert keeper.forgot.wait(30)
        keeper.stop()
    assert kept(path) == list(range(3000, 3100))
