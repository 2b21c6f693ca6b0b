"""From the camera to the ejector: real processes, and a PLC that is not of this project (libmodbus' server).

The run and the comparison are those of benchmarks/rejects.py, with bounds that a busy computer meets as well.
"""

from __future__ import annotations

import ctypes.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def measured(tmp_path: Path, *options: str) -> dict[str, float]:
    """The results of one run."""
    if ctypes.util.find_library("modbus") is None:
        pytest.skip("libmodbus is not installed (libmodbus5)")
    result = tmp_path / "result.json"
    words = [sys.executable, "benchmarks/rejects.py", "--json", str(result), "--keep", str(tmp_path / "kept"), *options]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("EDGE_")}
    run = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=220)
    assert run.returncode == 0, run.stderr + run.stdout
    found: dict[str, float] = json.loads(result.read_text())
    return found


@pytest.mark.timeout(240)  # 35 s where the computer has nothing else to do
def test_every_reject_lands_on_its_part_and_a_plc_that_dies_gets_no_stale_command(tmp_path: Path) -> None:
    """Half of the parts are rejected, in any order; meanwhile the PLC is frozen for 2 s, and later killed."""
    options = ("--rate", "5", "--minutes", "0.15", "--pulse-ms", "80", "--late-ms", "60", "--mishaps")
    found = measured(tmp_path, *options)
    assert found["parts"] > 40
    assert 10 < found["rejects"] < found["parts"]
    assert found["pulses"] > 10
    assert found["lost"] == 0, "a part to be ejected was not met by a pulse"
    assert found["stray"] == 0, "a pulse met no part that was to be ejected"
    assert found["hit"] == 0, "a good part was ejected"
    assert found["stale"] == 0, "a command was applied after the PLC thawed or returned"
    assert all(0 < seconds < 5 for seconds in found["recovered_s"]), "the line did not find back to the PLC"
    assert found["late_max"] < 80
