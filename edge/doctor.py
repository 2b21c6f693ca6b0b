"""`edge doctor`: what on this computer keeps a line from running well, each finding with its fix.

Every check is a function from a `Host` to findings. A tool or file that is missing is never an error here: it is what
is to be found out. Checks look, and change nothing.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.settings import Settings

TOOL_S = 20.0  # longest that a tool may take; nvidia-smi waits for a sleeping GPU


class Level(str, Enum):
    """How bad it is: a fault keeps a line from running, a warning from running well."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """One line of the report. `fix` is what to do; empty where nothing is wrong."""

    subject: str
    level: Level
    text: str
    fix: str = ""


def ok(subject: str, text: str) -> Finding:
    """Nothing to do."""
    return Finding(subject, Level.OK, text)


def warning(subject: str, text: str, fix: str) -> Finding:
    """The line runs, but not well."""
    return Finding(subject, Level.WARNING, text, fix)


def fault(subject: str, text: str, fix: str) -> Finding:
    """The line does not run."""
    return Finding(subject, Level.FAULT, text, fix)


class Host:
    """The computer as the checks see it: files below `root`, and tools."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def path(self, name: str) -> Path:
        """The file or folder `name`, given as an absolute path."""
        return self.root / name.lstrip("/")

    def read(self, name: str) -> str | None:
        """Content of a small file without trailing zeros and spaces, or None where it cannot be read."""
        try:
            return self.path(name).read_text(encoding="utf-8", errors="replace").strip("\0 \n")
        except OSError:
            return None

    def glob(self, pattern: str) -> list[Path]:
        """Files that match an absolute pattern."""
        return sorted(self.root.glob(pattern.lstrip("/")))

    def tool(self, *command: str) -> str | None:
        """What a program prints; None where it is missing, fails or does not end."""
        if shutil.which(command[0]) is None:
            return None
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=TOOL_S, check=False, errors="replace"
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None


Check = Callable[[Host, "Settings | None"], Iterable[Finding]]


def examine(host: Host, settings: Settings | None = None) -> Iterator[Finding]:
    """Every finding, check by check; `settings` are those of the line that shall run here, if there is one."""
    from edge import doctor_gpu, doctor_host, doctor_line, doctor_network

    for module in (doctor_gpu, doctor_host, doctor_network, doctor_line):
        for check in module.CHECKS:
            yield from _careful(check, host, settings)


def _careful(check: Check, host: Host, settings: Settings | None) -> Iterator[Finding]:
    """A check that fails in an unforeseen way is a finding, not the end of the report."""
    try:
        yield from check(host, settings)
    except Exception as error:
        name = check.__name__.replace("_", " ")
        words = " ".join(str(error).split())[:200]
        yield warning(name, f"could not be examined: {type(error).__name__}: {words}", "report this, please")
