"""SIGKILL at random moments: no part is lost, none gets two verdicts, and the line goes on.

The seed is printed; `EDGE_INSPECT_KILL_SEED` repeats a run. What capture announced is collected from the ring's journal
while the line runs, and from the truth file that the simulated camera writes; what alert published, from its socket.
"""

import json
import os
import random
import signal
import time
from collections import Counter, defaultdict
from pathlib import Path

from edge.alert.history import History, Query
from edge.child import State
from edge.errors import RingError
from edge.frames import RingReader, ring_path
from edge.line import Restart
from edge.messages import Decision, FrameRef, Verdict, decode
from edge.passthrough import Passthrough
from edge.run import run_line
from edge.supervisor import ExitCode
from edge.transport import Endpoints, Listener

KILLS = 20  # of each process
PATIENT = Restart(budget=10_000, window_s=60.0, backoff_s=0.05, backoff_max_s=0.05)
NAMES = ("capture-top", "infer", "alert")


class Witness:
    """Collects announcements and published verdicts by itself, beside the line."""

    def __init__(self, settings) -> None:
        self.announced: dict[tuple, FrameRef] = {}
        self.published: dict[tuple, list[Verdict]] = defaultdict(list)
        self._ring_path = ring_path(settings.line.name, "top")
        self._ring: RingReader | None = None
        self._next = 0
        self._listener = Listener([Endpoints(settings).publisher("alert")])

    def look(self) -> None:
        if self._ring is None or self._ring.stale:
            try:
                self._ring = RingReader.open(self._ring_path)
            except RingError:
                return  # not made yet
        records, self._next = self._ring.journal_after(self._next)
        for frame in map(decode, records):
            self.announced[key(frame.id)] = frame
        while (data := self._listener.recv()) is not None:
            message = decode(data)
            if isinstance(message, Verdict):
                self.published[key(message.id)].append(message)

    def close(self) -> None:
        self._listener.close()


def key(identity) -> tuple:
    return identity.camera, identity.epoch, identity.sequence


class Killer:
    """Kills processes of a running line one after another, from the supervisor's own turns."""

    def __init__(self, seed: int, witness: Witness) -> None:
        self.random = random.Random(seed)
        self.victims = [name for name in NAMES for _ in range(KILLS)]
        self.random.shuffle(self.victims)
        self.killed: list[tuple[float, str]] = []
        self.witness = witness
        self.recovered_with = 0  # judged parts published after the last kill
        self._began = time.monotonic()
        self._at = 0.0
        self._last_pid = 0
        self._judged_before = 0
        self._done = False

    def __call__(self, children) -> None:
        self.witness.look()
        now = time.monotonic()
        if self.killed and children[self.killed[-1][1]].pid == self._last_pid:
            return  # the supervisor has not noticed yet
        if any(child.total_restarts == 0 and child.state is not State.RUNNING for child in children.values()):
            return  # not up yet
        if self.victims:
            child = children[self.victims[-1]]
            if child.state is not State.RUNNING:
                self._at = 0.0  # not back yet; a random moment after it will be
            elif self._at == 0.0:
                self._at = now + self.random.uniform(0.0, 0.35)
            elif now >= self._at:
                self._last_pid = child.pid
                os.kill(child.pid, signal.SIGKILL)
                self.killed.append((round(now - self._began, 2), self.victims.pop()))
                self._at = 0.0
                self._judged_before = self._judged()
        elif not self._done and all(child.state is State.RUNNING for child in children.values()):
            self.recovered_with = self._judged() - self._judged_before
            if self.recovered_with >= 20:
                self._done = True
                os.kill(os.getpid(), signal.SIGTERM)  # ends the line in order

    def _judged(self) -> int:
        return sum(verdicts[0].decision is not Decision.UNJUDGED for verdicts in self.witness.published.values())


def test_any_process_may_be_killed_at_any_moment(make_line, tmp_path):
    seed = int(os.environ.get("EDGE_INSPECT_KILL_SEED") or random.SystemRandom().randrange(2**32))
    print(f"seed {seed}")
    line = make_line(rate_hz=25.0, deadline_ms=400.0)
    settings = line.settings
    witness = Witness(settings)
    killer = Killer(seed, witness)
    log = tmp_path / "log"
    try:
        with log.open("wb") as output:
            outcome, _ = run_line(settings, PATIENT, turn=killer, output=Passthrough(output.fileno()))
    finally:
        witness.close()
    print("killed", killer.killed)
    said = log.read_text().splitlines()
    tail = "\n".join([*(row for row in said if "why=" in row and "SIGKILL" not in row), *said[-10:]])
    assert outcome.code is ExitCode.OK, tail
    assert Counter(name for _, name in killer.killed) == dict.fromkeys(NAMES, KILLS)
    assert killer.recovered_with >= 20, "the line did not judge again after the last kill"
    # Kills the supervisor has counted: nothing else failed meanwhile.
    assert outcome.restarts == dict.fromkeys(NAMES, KILLS), tail

    with History(settings.paths.ledger) as history:
        entries = list(history.added(Query()))
    in_ledger = Counter(key(entry.verdict.id) for entry in entries)
    truth = [json.loads(row) for row in Path(line.truth).read_text().splitlines()]
    assert len({identity[1] for identity in witness.announced}) == KILLS + 1  # every life of capture
    assert {("top", row["epoch"], row["sequence"]) for row in truth} <= set(witness.announced)
    assert set(in_ledger) == set(witness.announced)
    assert set(in_ledger.values()) == {1}

    rows = {key(entry.verdict.id): entry.verdict for entry in entries}
    for identity, verdicts in witness.published.items():
        for verdict in verdicts:
            assert verdict == rows[identity], "alert contradicts what it published"
    counts = Counter(entry.verdict.decision for entry in entries)
    print(f"{len(entries)} parts, {dict(counts)}, {len(witness.published)} verdicts heard")
    assert len(witness.published) > len(entries) / 4
    # The point of it all: with everybody dying all the time, parts still are judged.
    assert counts[Decision.PASS] + counts[Decision.REJECT] > len(entries) / 10
