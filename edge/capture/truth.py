"""What the simulated camera knows about its parts, written beside the line's own verdicts to compare them with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from edge.errors import SourceError


class TruthFile:
    """JSON lines, one per part: epoch, sequence, part, index, defect (kind or null), severity, area_px, box.

    New lines go to the end, so that a restarted capture process goes on; its epoch tells its parts from earlier ones.
    """

    def __init__(self, path: Path) -> None:
        """Opens the file, making its folder. Raises `SourceError` where it cannot be written."""
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise SourceError(f"{path}: cannot write the truth file: {error.strerror}; change truth_file") from error

    def write(self, row: Mapping[str, object]) -> str:
        """Adds a line. Returns what went wrong, or nothing; after a fault the file is closed."""
        try:
            self._file.write(json.dumps(row) + "\n")
        except OSError as error:
            self.close()
            return f"{self._path}: the truth about the parts is no longer written: {error.strerror}"
        return ""

    def close(self) -> None:
        """Closes the file; safe to call twice."""
        try:
            self._file.close()
        except OSError:
            return  # a full disk, told before
