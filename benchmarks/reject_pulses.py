"""Parts against pulses: which pulse met the part it was for, how late, and which met nobody or somebody else."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

import numpy as np

from edge.messages import Decision

MS = 1_000_000
SETTLING_NS = 1000 * MS  # after the PLC is back: longer than the wait between two attempts to connect


@dataclass(frozen=True)
class Part:
    """One part: when it is at the ejector, and what was decided."""

    epoch: int
    sequence: int
    due_ns: int
    decision: Decision


@dataclass(frozen=True)
class Pulse:
    """The output as the server saw it."""

    on_ns: int
    off_ns: int


@dataclass
class Outcome:
    """What came of a run. Times in milliseconds."""

    parts: int = 0
    rejects: int = 0
    pulses: int = 0
    lost: int = 0
    stray: int = 0
    hit: int = 0
    stale: int = 0
    unjudged: int = 0
    late_p50: float = 0.0
    late_p99: float = 0.0
    late_p999: float = 0.0
    late_max: float = 0.0
    early_max: float = 0.0
    pulse_min: float = 0.0
    pulse_max: float = 0.0
    recovered_s: list[float] = field(default_factory=list)  # from the end of a mishap to the next pulse that was right


def compare(
    parts: list[Part],
    pulses: list[Pulse],
    away: list[tuple[int, int]],
    wanted: frozenset[Decision],
    pulse_ms: float,
    near_ms: float,
) -> Outcome:
    """Parts against pulses. Parts with a `wanted` verdict should have one, near to when they are due.

    `away` tells when the PLC was not reachable: a part that was due then is not missed, but a pulse for nobody is a
    stale one, then and shortly afterwards. A pulse further than `near_ms` from every due time was for nobody.
    """
    near_ns, half_ns = round(near_ms * MS), round(pulse_ms * MS / 2)
    outcome = Outcome(parts=len(parts), pulses=len(pulses))
    outcome.unjudged = sum(part.decision is Decision.UNJUDGED for part in parts)
    targets = [part for part in parts if part.decision in wanted]
    outcome.rejects = len(targets)
    dues = [part.due_ns for part in targets]
    met: set[int] = set()
    lateness, lengths = [], []
    for pulse in pulses:
        number = bisect_left(dues, pulse.on_ns - near_ns)
        near = [n for n in range(number, min(number + 4, len(dues))) if abs(pulse.on_ns - dues[n]) < near_ns]
        if not near:
            stale = any(begin <= pulse.on_ns <= end + SETTLING_NS for begin, end in away)
            outcome.stale += stale
            outcome.stray += not stale
            continue
        best = min(near, key=lambda n: abs(pulse.on_ns - dues[n]))
        # A longer pulse is for all parts whose windows it covers.
        covered = [n for n in range(best, len(dues)) if dues[n] + half_ns <= pulse.off_ns]
        met.update([best, *covered])
        lateness.append((pulse.on_ns - dues[best]) / MS)
        if len(covered) <= 1:
            lengths.append((pulse.off_ns - pulse.on_ns) / MS)
    blind = [(begin - 100 * MS, end + SETTLING_NS) for begin, end in away]
    for number, part in enumerate(targets):
        if number not in met and not any(begin <= part.due_ns <= end for begin, end in blind):
            outcome.lost += 1
    for part in parts:
        if part.decision not in wanted:
            end = part.due_ns + round(pulse_ms * MS)
            outcome.hit += any(pulse.on_ns < end and pulse.off_ns > part.due_ns for pulse in pulses)
    if lateness:
        outcome.late_p50, outcome.late_p99, outcome.late_p999 = np.percentile(lateness, [50, 99, 99.9]).tolist()
        outcome.late_max, outcome.early_max = max(lateness), max(0.0, -min(lateness))
    if lengths:
        outcome.pulse_min, outcome.pulse_max = min(lengths), max(lengths)
    for _, end in away:
        after = [pulse.on_ns for pulse in pulses if pulse.on_ns > end]
        outcome.recovered_s.append(round((after[0] - end) / 1e9, 3) if after else -1.0)
    return outcome
