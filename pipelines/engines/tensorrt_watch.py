"""Watching TensorRT's builder: its log, its progress, and how long each stage takes."""

from __future__ import annotations

import re
import time
from typing import Any

from pipelines.engines.base import Progress

CONVERTED, BUILT = 0.25, 0.95
"""Shares of the whole at which conversion and build end."""
_KERNEL = re.compile(r"^Name: (\S+?),")


class BuilderLog:
    """The builder's log: errors, warnings, and the kernels of its detailed listing."""

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.kernels: list[str] = []

    def clear(self) -> None:
        """Before another build."""
        for lines in (self.errors, self.warnings, self.kernels):
            lines.clear()

    def make(self) -> Any:
        """An `ILogger` that fills this."""
        import tensorrt

        log = self

        class Logger(tensorrt.ILogger):  # type: ignore[misc]
            def __init__(self) -> None:
                tensorrt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                if severity in (tensorrt.ILogger.ERROR, tensorrt.ILogger.INTERNAL_ERROR):
                    log.errors.append(" ".join(message.split()))
                elif severity == tensorrt.ILogger.WARNING:
                    log.warnings.append(" ".join(message.split())[:400])
                else:
                    log.kernels += [found[1] for found in map(_KERNEL.match, message.splitlines()) if found]

        return Logger()


def monitor(progress: Progress) -> Any:
    """TensorRT's progress as ours. Its phases nest; a phase counts for its share of the step of its parent."""
    import tensorrt

    class Monitor(tensorrt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            tensorrt.IProgressMonitor.__init__(self)
            self.open: dict[str, list[int]] = {}  # phase: steps done, steps in all
            self.told = (0.0, 0.0)

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            self.open[name] = [0, max(1, steps)]
            self.tell(name)

        def phase_finish(self, name: str) -> None:
            self.open.pop(name, None)

        def step_complete(self, name: str, step: int) -> bool:
            if name in self.open:
                self.open[name][0] = step + 1
            self.tell(name)
            return True

        def tell(self, name: str) -> None:
            share, weight = 0.0, 1.0
            for done, steps in self.open.values():
                share += weight * min(done / steps, 1.0)
                weight /= steps
            share, now = max(self.told[0], min(share, 1.0)), time.monotonic()
            if now - self.told[1] > 0.1:
                self.told = (share, now)
                progress(f"build the engine: {name[:40].lower()}", CONVERTED + (BUILT - CONVERTED) * share)

    return Monitor()


class Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def skip(self) -> None:
        """What was until now belongs to no stage."""
        self._last = time.monotonic()

    def lap(self, name: str) -> None:
        """Ends a stage."""
        now = time.monotonic()
        self.laps[name] = round(now - self._last, 2)
        self._last = now
