"""From decided to written: commits verdicts, and keeps them where the ledger cannot be written.

A verdict may be published only when its row is committed. Where that fails, the part becomes UNJUDGED ("the ledger
cannot be written"): an inspection without a record is none. Its row waits in memory, in a bounded queue, and is
written when there is room again. A row that finds the queue full is given up and counted; the part still has its
verdict (UNJUDGED), and, should this process end, gets the same one again from the ring's journal.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

import msgspec

from edge.alert.ledger import Ledger, LedgerDamaged
from edge.alert.ledger_schema import Entry
from edge.errors import LedgerError
from edge.messages import Decision

UNWRITTEN = "the ledger cannot be written"
RETRY_NS = 250_000_000
ROWS_AT_ONCE = 2048


@dataclass
class Recorder:
    """Writes entries to the ledger, now or later."""

    ledger: Ledger
    capacity: int = 65_536
    fault: str = ""
    contradictions: int = 0  # parts that had a row already: their second verdict was neither written nor published
    given_up: int = 0  # rows for which there was no room in memory
    _waiting: deque[Entry] = field(default_factory=deque, init=False)
    _retry_ns: int = field(default=0, init=False)

    @property
    def waiting(self) -> int:
        """Rows that wait for the ledger."""
        return len(self._waiting)

    def record(self, entries: list[Entry], now_ns: int) -> list[Entry]:
        """Commits `entries` together; returns those to publish, as they are to be published."""
        if self._waiting and not self.catch_up(now_ns):
            return self._keep(entries)
        try:
            new = self._write(entries)
        except LedgerError as error:
            self.fault = str(error)
            self._retry_ns = now_ns + RETRY_NS
            return self._keep(entries)
        self.contradictions += new.count(False)
        return [entry for entry, is_new in zip(entries, new, strict=True) if is_new]

    def catch_up(self, now_ns: int) -> bool:
        """Writes rows that wait, if it is time to try again. True when none is left."""
        if self._waiting and now_ns < self._retry_ns:
            return False
        while self._waiting:
            batch = [self._waiting[i] for i in range(min(ROWS_AT_ONCE, len(self._waiting)))]
            try:
                self._write(batch)
            except LedgerError as error:
                self.fault = str(error)
                self._retry_ns = now_ns + RETRY_NS
                return False
            for _ in batch:
                self._waiting.popleft()
        self.fault = ""
        return True

    def _write(self, entries: list[Entry]) -> list[bool]:
        try:
            return self.ledger.write(entries)
        except LedgerDamaged as error:
            self.ledger.replace(str(error))
            return self.ledger.write(entries)

    def _keep(self, entries: list[Entry]) -> list[Entry]:
        unjudged = [
            replace(
                entry,
                verdict=entry.verdict
                if entry.verdict.decision is Decision.UNJUDGED
                else msgspec.structs.replace(entry.verdict, decision=Decision.UNJUDGED, reason=UNWRITTEN),
            )
            for entry in entries
        ]
        room = self.capacity - len(self._waiting)
        self._waiting.extend(unjudged[: max(0, room)])
        self.given_up += max(0, len(unjudged) - max(0, room))
        return unjudged
