"""Loading bundles beside the work loop, one request at a time."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge.inference.judge import Judge
from edge.settings import Settings


@dataclass(frozen=True)
class Loaded:
    """Bundles that are ready to take over: `loaded` are new, the others of `paths` stay as they are."""

    settings: Settings
    loaded: dict[Path, Judge]
    paths: tuple[Path, ...]


class Swap:
    """Carries out requests in a thread, one after the other; of those that come meanwhile, the last one counts."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._outcome: Loaded | Exception | None = None
        self._next: Callable[[], Loaded] | None = None

    def request(self, load: Callable[[], Loaded]) -> None:
        """Has `load` called in a thread, when the work loop next asks for the outcome."""
        self._next = load

    def outcome(self) -> Loaded | Exception | None:
        """What a request came to, once; None while there is nothing new. Call it from the work loop."""
        if self._thread is not None:
            if self._thread.is_alive():
                return None
            self._thread.join()
            outcome, self._thread, self._outcome = self._outcome, None, None
            return outcome
        if self._next is not None:
            load, self._next = self._next, None
            self._thread = threading.Thread(target=self._work, args=(load,), name="load-bundles", daemon=True)
            self._thread.start()
        return None

    def abandon(self) -> None:
        """Waits for what is loading, and frees it."""
        self._next = None
        if self._thread is not None:
            self._thread.join()
            self._thread = None
            if isinstance(self._outcome, Loaded):
                for judge in self._outcome.loaded.values():
                    judge.close()

    def _work(self, load: Callable[[], Loaded]) -> None:
        try:
            self._outcome = load()
        except Exception as error:
            self._outcome = error
