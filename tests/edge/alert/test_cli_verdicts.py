from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge.alert.ledger import Ledger
from edge.alert.ledger_schema import ArchiveState, Entry
from edge.moments import moment
from edge.settings import load_settings

S = 1_000_000_000


@pytest.fixture
def line(settings_file: Any, make_verdict: Any) -> Path:
    """A line of 40 parts; every fourth is rejected."""
    file: Path = settings_file()
    with Ledger.open(load_settings(file).paths.ledger, "press") as ledger:
        ledger.write(
            [
                Entry(make_verdict(i, "reject" if i % 4 == 2 else "pass"), [{"name": "part", "percent": 1.0}],
                      ArchiveState.SAVED if i == 2 else ArchiveState.NONE, "2023-11-14/top/x" if i == 2 else None)
                for i in range(40)
            ]
        )  # fmt: skip
    return file


def edge(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "edge.cli", "verdicts", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_table(line: Path) -> None:
    result = edge(line)
    assert result.returncode == 0, result.stderr
    rows = result.stdout.splitlines()
    assert len(rows) == 1 + 20 + 1
    assert "REJECT" in rows[-3]
    assert rows[-2].split()[3] == "40"
    assert rows[-1] == "40 parts: 30 pass, 10 reject, 0 unjudged, the newest 20 shown"


def test_json_with_filters(line: Path) -> None:
    result = edge(line, "--decision", "reject", "--last", 3, "--json", "--camera", "top")
    rows = [json.loads(text) for text in result.stdout.splitlines()]
    assert [row["sequence"] for row in rows] == [30, 34, 38]
    assert rows[0]["decided_at"] == "2023-11-14T22:13:23.000000Z"
    assert rows[0]["percent"] == 140.0
    assert rows[0]["regions"] == [{"name": "part", "percent": 1.0}]
    first = json.loads(edge("--json", "--part", "3", line).stdout)
    assert first["archive"].endswith("/data/archive/2023-11-14/top/x")


def test_csv_holds_everything(line: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(edge(line, "--csv").stdout)))
    assert [row["sequence"] for row in rows] == [str(i) for i in range(40)]
    assert rows[7]["origin"] == "good/7.png"


def test_times(line: Path) -> None:
    result = edge(line, "--json", "--since", "2023-11-14T22:13:23.5Z", "--until", "2023-11-14T22:13:23.700Z")
    assert [json.loads(text)["sequence"] for text in result.stdout.splitlines()] == [35, 36]
    assert edge(line, "--json", "--since", "1h").stdout == ""


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (("--since", "yesterday-ish"), 2, "neither a time"),
        (("--camera", "bottom"), 1, "no camera 'bottom'; it has top"),
        (("--json", "--csv"), 2, "choose one"),
        (("--decision", "maybe"), 2, "maybe"),
    ],
)
def test_wrong_words_are_told(line: Path, words: tuple[str, ...], code: int, text: str) -> None:
    result = edge(line, *words)
    assert result.returncode == code
    assert text in result.stderr
    assert "Traceback" not in result.stderr


def test_no_ledger_yet(settings_file: Any) -> None:
    result = edge(settings_file())
    assert result.returncode == 1
    assert "there is no ledger yet" in result.stderr


def test_follow(line: Path, make_verdict: Any) -> None:
    """New verdicts come as they are written, also from the ledger that replaces one moved aside."""
    command = [sys.executable, "-m", "edge.cli", "verdicts", str(line), "--follow", "--json", "--last", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert json.loads(process.stdout.readline())["sequence"] == 39
        path = load_settings(line).paths.ledger
        with Ledger.open(path, "press") as ledger:
            ledger.write([Entry(make_verdict(i)) for i in (40, 41)])
            assert [json.loads(process.stdout.readline())["sequence"] for _ in range(2)] == [40, 41]
        path.rename(path.with_name("aside"))
        with Ledger.open(path, "press") as ledger:
            ledger.write([Entry(make_verdict(50))])
            assert json.loads(process.stdout.readline())["sequence"] == 50
        process.terminate()


def test_reader_that_has_had_enough(line: Path) -> None:
    command = f"{sys.executable} -m edge.cli verdicts {line} --json | head -1"
    result = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert json.loads(result.stdout)["sequence"] == 0
    assert result.stderr == ""


def test_moments() -> None:
    assert moment("15m", 10_000 * S) == 9_100 * S
    assert moment("0.5d", 10**6 * S) == (10**6 - 43_200) * S
    assert moment("1970-01-02T00:00:00+00:00") == 86_400 * S
    assert moment("1970-01-02T00:00:00.25Z") == 86_400 * S + S // 4
    for text in ("", "5", "5 weeks", "2026-13-01", "nan"):
        with pytest.raises(ValueError, match="neither a time"):
            moment(text)
