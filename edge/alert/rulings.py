"""What alert tells the PLC's process: a ruling per part, and ten times a second that it lives.

Several cameras of one part are joined here (`joining`): the PLC gets one ruling per part. Nobody is waited for: where
the PLC's process is away or slow, a ruling is dropped and counted, and the PLC decides by default.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from edge.alert.deadlines import Decided
from edge.alert.joining import Group, Joiner
from edge.messages import Health, Ruling, encode
from edge.settings import Settings
from edge.transport import Endpoint, Outbox

ALIVE_NS = 100_000_000


class Rulings:
    """The way from alert to the PLC's process."""

    def __init__(self, settings: Settings, endpoint: Endpoint) -> None:
        self._outbox = Outbox(endpoint)
        self._joiner = Joiner(groups_of(settings))
        self._health = b""  # the newest, told again in between
        self._told_ns = 0

    def tell(self, decided: Iterable[Decided]) -> None:
        """Verdicts that stand in the ledger."""
        for item in decided:
            self._send(self._joiner.add(item.verdict, item.trigger_ns, item.deadline_ns))

    def health(self, health: Health) -> None:
        """Alert's own health, as it is published."""
        self._health = encode(health)
        self._told_ns = 0

    def turn(self, now_ns: int) -> None:
        """Rules parts that waited for another camera long enough; says that alert lives."""
        self._send(self._joiner.expire(now_ns))
        if self._health and now_ns - self._told_ns >= ALIVE_NS:
            self._told_ns = now_ns
            self._outbox.send(self._health)

    def next_due_ns(self) -> int | None:
        """When `turn` has something to do."""
        alive = self._told_ns + ALIVE_NS if self._health else None
        return min((due for due in (alive, self._joiner.next_due_ns()) if due is not None), default=None)

    def counters(self) -> dict[str, int]:
        """As health shows them."""
        counts = self._joiner.counts
        return {
            "rulings": counts.rulings,
            "rulings_dropped": self._outbox.dropped,
            "joined_missing": counts.missing,
            "joined_late": counts.late,
        }

    def close(self) -> None:
        """Rules what is open, and says that alert stops."""
        self._send(self._joiner.finish())
        if self._health:
            self._outbox.send(self._health)
        self._outbox.close()

    def _send(self, rulings: Iterable[Ruling]) -> None:
        for ruling in rulings:
            self._outbox.send(encode(ruling))


def groups_of(settings: Settings) -> list[Group]:
    """The line's groups of cameras."""
    members = defaultdict(list)
    for camera in settings.cameras:
        if camera.group is not None:
            members[camera.group].append(camera)
    return [
        Group(
            cameras=frozenset(camera.name for camera in cameras),
            by_number=cameras[0].trigger.numbered_by != "frame",
            sync_ns=round(settings.alert.sync_ms * 1e6),
            deadline_ns=max(round(settings.deadline_ms(camera) * 1e6) for camera in cameras),
        )
        for cameras in members.values()
    ]
