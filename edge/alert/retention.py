"""Room in the archive: how much lies there, and what goes first.

Items are counted per day and kind of verdict, so that memory stays small however many files there are; names are read
only of the day that is being thinned out. Who goes first: PASS, then UNJUDGED, then REJECT ("defects last"), each
oldest first. Room for a new item is made among its own kind and those that go before it: a flood of unjudged frames
never pushes a defect out.

One file name tells all that is needed: `<archive>/<day>/<camera>/<time>-<epoch>-<sequence>-<decision>.<suffix>`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge.messages import Decision

GOES_FIRST = (Decision.PASS, Decision.UNJUDGED, Decision.REJECT)
SUFFIXES = (".png", ".overlay.png", ".json")  # of one item
TEMPORARY = ".part"

_NAME = re.compile(r"(\d{6}\.\d{3})-(\d+)-(\d+)-(pass|unjudged|reject)(\.png|\.overlay\.png|\.json)")
_DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True)
class Item:
    """One archived part: its files are `stem` plus one of `SUFFIXES`."""

    day: str
    camera: str
    stem: str

    @property
    def path(self) -> str:
        """Relative to the archive, without suffix: what the ledger keeps."""
        return f"{self.day}/{self.camera}/{self.stem}"

    @property
    def identity(self) -> tuple[str, int, int]:
        """Camera, epoch and sequence."""
        _, epoch, sequence, _ = self.stem.split("-")
        return self.camera, int(epoch), int(sequence)

    @property
    def decision(self) -> Decision:
        """The verdict on the part."""
        return Decision(self.stem.rsplit("-", 1)[1])


@dataclass(frozen=True)
class Limits:
    """What the archive may take."""

    max_bytes: int
    min_free_bytes: int  # of the disk
    keep_days: float


class Stock:
    """What lies in the archive. `removed` is told of each item that is removed to make room."""

    def __init__(self, folder: Path, limits: Limits, removed: Callable[[Item], None]) -> None:
        self.folder = folder
        self.limits = limits
        self.bytes = 0
        self._removed = removed
        self._held: dict[tuple[str, Decision], int] = defaultdict(int)  # bytes per day and decision
        self._victims: dict[tuple[str, Decision], deque[Item]] = {}

    def scan(self) -> None:
        """Counts what is there and removes what a killed writer left half-written. Raises `OSError`."""
        for day in _folders(self.folder):
            if not _DAY.fullmatch(day.name):
                continue
            for camera in _folders(day):
                with os.scandir(camera) as entries:
                    for entry in entries:
                        if entry.name.endswith(TEMPORARY):
                            os.unlink(entry.path)  # noqa: PTH108
                        elif match := _NAME.fullmatch(entry.name):
                            self._count(day.name, Decision(match[4]), entry.stat().st_size)

    def added(self, item: Item, size: int) -> None:
        """An item of `size` bytes was written."""
        self._count(item.day, item.decision, size)

    def expire(self, today: str) -> None:
        """Removes days older than `keep_days`, given the day it is (YYYY-MM-DD). Raises `OSError`."""
        oldest = _days_before(today, self.limits.keep_days)
        for day, decision in sorted(self._held):
            if day < oldest:
                while self._remove_oldest(day, decision):
                    pass

    def make_room(self, needed: int, decision: Decision) -> bool:
        """Removes items until `needed` bytes fit for a new item of that verdict. False where they cannot.

        Raises `OSError` where removing fails.
        """
        while not self._fits(needed):
            key = self._first_to_go(decision)
            if key is None:
                return False
            self._remove_oldest(*key)
        return True

    def _fits(self, needed: int) -> bool:
        disk = os.statvfs(self.folder)
        free = disk.f_bavail * disk.f_frsize
        return self.bytes + needed <= self.limits.max_bytes and free - needed >= self.limits.min_free_bytes

    def _first_to_go(self, newcomer: Decision) -> tuple[str, Decision] | None:
        for decision in GOES_FIRST[: GOES_FIRST.index(newcomer) + 1]:
            days = [day for day, kind in self._held if kind is decision]
            if days:
                return min(days), decision
        return None

    def _remove_oldest(self, day: str, decision: Decision) -> bool:
        """Removes the oldest item of that day and verdict; False when there is none left."""
        key = (day, decision)
        victims = self._victims.get(key)
        if victims is None:
            victims = self._victims[key] = deque(self._items(day, decision))
        if not victims:
            # Counted, but gone: somebody else cleaned up. What was added since the list was read is found next time.
            del self._victims[key]
            left = self._items(day, decision)
            if left:
                self._victims[key] = deque(left)
                return self._remove_oldest(day, decision)
            self.bytes -= self._held.pop(key, 0)
            for folder in (*_folders(self.folder / day), self.folder / day):
                with contextlib.suppress(OSError):  # not empty
                    folder.rmdir()
            return False
        item = victims.popleft()
        freed = 0
        for suffix in reversed(SUFFIXES):  # the JSON first: an item without it is not whole
            path = self.folder / (item.path + suffix)
            with contextlib.suppress(FileNotFoundError):
                size = path.stat().st_size
                path.unlink()
                freed += size
        self._count(day, decision, -freed)
        self._removed(item)
        return True

    def _items(self, day: str, decision: Decision) -> list[Item]:
        stems: set[tuple[str, str]] = set()
        for camera in _folders(self.folder / day):
            for entry in os.scandir(camera):
                match = _NAME.fullmatch(entry.name)
                if match and match[4] == decision.value:
                    stems.add((entry.name[: -len(match[5])], camera.name))
        return [Item(day, camera, stem) for stem, camera in sorted(stems)]

    def _count(self, day: str, decision: Decision, size: int) -> None:
        self._held[day, decision] += size
        self.bytes += size


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())


def _days_before(today: str, days: float) -> str:
    import datetime

    try:
        return (datetime.date.fromisoformat(today) - datetime.timedelta(days=days)).isoformat()
    except OverflowError:
        return "0000-00-00"
