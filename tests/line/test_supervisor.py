"""The supervisor with small real programs as children."""

import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest

from edge.line import Restart, Role, Spec
from edge.passthrough import Passthrough
from edge.supervisor import ExitCode, Hooks, Outcome, Supervisor

# What every test child can do: speak sd_notify, and note what happened to it, with the time, in one shared file.
PRELUDE = """
import os, signal, socket, sys, time
name, journal = sys.argv[1], sys.argv[2]
def note(word):
    descriptor = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(descriptor, f"{name} {word}\\n".encode())
    os.close(descriptor)
def tell(text):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    s.connect(os.environ["NOTIFY_SOCKET"])
    s.send(text.encode())
    s.close()
def stop(*_):
    note("stop")
    sys.exit(0)
def serve(period=0.05):
    while True:
        time.sleep(period)
        tell("WATCHDOG=1")
signal.signal(signal.SIGTERM, stop)
note("start")
"""

SERVE = "tell('READY=1'); note('ready'); serve()"


class Log:
    """Keeps what the supervisor says."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str, dict]] = []

    def info(self, event: str, **fields: object) -> None:
        self.events.append(("info", event, fields))

    def warning(self, event: str, **fields: object) -> None:
        self.events.append(("warning", event, fields))

    def error(self, event: str, **fields: object) -> None:
        self.events.append(("error", event, fields))

    def of(self, event: str) -> list[dict]:
        return [fields for _, said, fields in self.events if said == event]


def make_role(name: str, order: int, **changes) -> Role:
    role = Role(
        name=name,
        summary="",
        per_camera=False,
        start_order=order,
        ready_s=10.0,
        watchdog_s=5.0,
        stop_s=5.0,
        may_finish=name == "capture",
        reloads=name == "infer",
        cpu_budget=1.0,
        cpu_weight=100,
        memory_mib=64,
        tasks=8,
        oom_score=0,
        restart=Restart(budget=3, window_s=60.0, backoff_s=0.01, backoff_max_s=0.1),
    )
    return replace(role, **changes)


class Bench:
    """Builds a line of test children and runs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.journal = folder / "journal"
        self.log = Log()
        self.specs: list[Spec] = []
        self.bodies: dict[str, str] = {}
        self.supervisor: Supervisor | None = None

    def add(self, name: str, order: int, body: str, **changes) -> None:
        self.specs.append(Spec(name, make_role(name.split("-")[0], order, **changes), ()))
        self.bodies[name] = body

    def command(self, spec: Spec) -> list[str]:
        script = self.folder / f"{spec.name}.py"
        script.write_text(PRELUDE + textwrap.dedent(self.bodies[spec.name]))
        return [sys.executable, "-S", str(script), spec.name, str(self.journal)]

    def run(self, turn=lambda bench, children: None, **hooks) -> Outcome:
        with (self.folder / "output").open("wb") as output:
            self.supervisor = Supervisor(
                self.specs,
                self.command,
                self.folder,
                self.log,
                Passthrough(output.fileno()),
                Hooks(turn=lambda children: turn(self, children), **hooks),
            )
            return self.supervisor.run()

    @property
    def said(self) -> list[str]:
        return self.journal.read_text().splitlines() if self.journal.exists() else []

    @property
    def output(self) -> str:
        return (self.folder / "output").read_text()


@pytest.fixture
def bench(tmp_path) -> Bench:
    return Bench(tmp_path)


def stop_once(condition):
    """A turn hook that stops the line when `condition(bench, children)` first holds."""
    done = []

    def turn(bench, children):
        if not done and condition(bench, children):
            done.append(True)
            bench.supervisor.stop("the test has seen enough")

    return turn


def test_starts_each_group_after_the_one_before_is_ready_and_stops_the_other_way_round(bench):
    bench.add("capture-a", 2, SERVE)
    bench.add("capture-b", 2, SERVE)
    bench.add("infer", 1, "time.sleep(0.2);" + SERVE)
    bench.add("alert", 0, "time.sleep(0.2);" + SERVE)
    up = []
    outcome = bench.run(turn=stop_once(lambda bench, children: bool(up)), up=lambda: up.append(True))
    assert outcome.code is ExitCode.OK
    said = bench.said
    assert said.index("alert ready") < said.index("infer start")
    assert said.index("infer ready") < said.index("capture-a start")
    assert said.index("infer ready") < said.index("capture-b start")
    assert max(said.index("capture-a stop"), said.index("capture-b stop")) < said.index("infer stop")
    assert said.index("infer stop") < said.index("alert stop")
    assert outcome.restarts == {"capture-a": 0, "capture-b": 0, "infer": 0, "alert": 0}


def test_variables_of_the_table_give_way_to_those_that_are_set(bench, monkeypatch):
    monkeypatch.setenv("EDGE_TEST_SET", "by the user")
    told = "note('got ' + os.environ['EDGE_TEST_SET'] + ', ' + os.environ['EDGE_TEST_UNSET']);"
    variables = (("EDGE_TEST_SET", "by the table"), ("EDGE_TEST_UNSET", "by the table"))
    bench.add("alert", 0, told + SERVE, environment=variables)
    bench.run(turn=stop_once(lambda bench, children: "alert ready" in bench.said))
    assert "alert got by the user, by the table" in bench.said


def test_failure_before_the_line_is_up_stops_it_and_quotes_the_last_words(bench):
    bench.add("alert", 0, SERVE)
    bench.add("infer", 1, "print('error: bundle.json: no such file', file=sys.stderr); sys.exit(1)")
    bench.add("capture-a", 2, SERVE)
    outcome = bench.run()
    assert outcome.code is ExitCode.NOT_STARTED
    assert "infer: exit code 1" in outcome.reason
    assert "error: bundle.json: no such file" in outcome.reason
    assert "capture-a start" not in bench.said
    assert bench.said[-1] == "alert stop"


def test_process_that_is_not_ready_in_time_is_named_with_its_status(bench):
    bench.add("alert", 0, "tell('STATUS=opening the ledger'); time.sleep(60)", ready_s=0.5)
    outcome = bench.run()
    assert outcome.code is ExitCode.NOT_STARTED
    assert "alert: was not ready within 0.5 s" in outcome.reason


def test_process_may_ask_for_more_time_to_start(bench):
    bench.add("alert", 0, "tell('EXTEND_TIMEOUT_USEC=5000000'); time.sleep(0.8);" + SERVE, ready_s=0.4)
    outcome = bench.run(turn=stop_once(lambda bench, children: "alert ready" in bench.said))
    assert outcome.code is ExitCode.OK


def test_killed_process_is_restarted_and_the_others_go_on(bench):
    bench.add("alert", 0, SERVE)
    bench.add("infer", 1, SERVE)
    killed = []

    def turn(bench, children):
        if not killed and bench.said.count("infer ready") == 1:
            killed.append(children["infer"].pid)
            os.kill(children["infer"].pid, signal.SIGKILL)
        if bench.said.count("infer ready") == 2 and len(killed) == 1:
            killed.append(0)
            bench.supervisor.stop()

    outcome = bench.run(turn=turn)
    assert outcome.code is ExitCode.OK
    assert outcome.restarts == {"alert": 0, "infer": 1}
    assert bench.said.count("alert start") == 1
    (restart,) = bench.log.of("restarting")
    assert restart["why"] == "killed by SIGKILL"


def test_exhausted_budget_stops_the_line_with_the_name_and_last_words(bench):
    bench.add("alert", 0, SERVE)
    bench.add("infer", 1, "tell('READY=1'); print('out of luck'); sys.exit(7)")
    bench.add("capture-a", 2, SERVE)
    outcome = bench.run()
    assert outcome.code is ExitCode.GAVE_UP
    assert "infer: exit code 7, after 3 restarts" in outcome.reason
    assert "out of luck" in outcome.reason
    assert outcome.restarts["infer"] == 3
    assert bench.said.count("infer start") == 4
    waits = [fields["in_s"] for fields in bench.log.of("restarting")]
    assert waits == [0.01, 0.02, 0.04]


def test_silent_process_is_aborted_says_where_it_hung_and_is_restarted(bench):
    body = """
        if "hung" in open(journal).read():
            tell("READY=1"); note("ready"); serve()
        tell("READY=1")
        note("hung")
        def hangs_here():
            time.sleep(60)
        hangs_here()
    """
    bench.add("alert", 0, body, watchdog_s=0.3)
    outcome = bench.run(turn=stop_once(lambda bench, children: "alert ready" in bench.said))
    assert outcome.code is ExitCode.OK
    assert outcome.restarts == {"alert": 1}
    (restart,) = bench.log.of("restarting")
    assert restart["why"] == "sent no watchdog message for 0.3 s"
    assert "hangs_here" in bench.output  # faulthandler, on SIGABRT


def test_process_that_survives_abort_is_killed(bench, monkeypatch):
    monkeypatch.setattr("edge.child.ABORT_S", 0.2)
    body = """
        if "deaf" in open(journal).read():
            tell("READY=1"); note("ready"); serve()
        signal.signal(signal.SIGABRT, signal.SIG_IGN)
        tell("READY=1")
        note("deaf")
        while True:
            time.sleep(1)
    """
    bench.add("alert", 0, body, watchdog_s=0.3)
    outcome = bench.run(turn=stop_once(lambda bench, children: "alert ready" in bench.said))
    assert outcome.restarts == {"alert": 1}


def test_process_that_does_not_stop_is_killed_after_its_time_and_the_rest_still_stops(bench):
    bench.add("alert", 0, SERVE)
    bench.add("infer", 1, "signal.signal(signal.SIGTERM, signal.SIG_IGN);" + SERVE, stop_s=0.3)
    outcome = bench.run(turn=stop_once(lambda bench, children: "infer ready" in bench.said))
    assert outcome.code is ExitCode.OK
    (late,) = bench.log.of("did not stop in time: killed")
    assert late["child"] == "infer"
    assert bench.said[-1] == "alert stop"


def test_finished_sources_are_drained_and_the_line_ends_with_0(bench):
    bench.add("alert", 0, SERVE)
    bench.add("capture-a", 2, "tell('READY=1'); sys.exit(0)")
    bench.add("capture-b", 2, "tell('READY=1'); time.sleep(0.2); sys.exit(0)")
    asked = []

    def undecided() -> int:
        asked.append(True)
        return 3 - len(asked)

    outcome = bench.run(undecided=undecided)
    assert outcome.code is ExitCode.OK
    assert outcome.drained
    assert len(asked) == 3
    assert bench.said[-1] == "alert stop"


def test_parts_left_without_verdict_after_the_drain_are_an_error(bench):
    bench.add("alert", 0, SERVE)
    bench.add("capture-a", 2, "tell('READY=1'); sys.exit(0)")
    outcome = bench.run(undecided=lambda: 2, drain_s=0.3)
    assert outcome.code is ExitCode.UNDECIDED
    assert "2 parts without a verdict" in outcome.reason
    assert not outcome.drained


def test_hangup_is_forwarded_to_those_that_reload_only(bench):
    reloading = "signal.signal(signal.SIGHUP, lambda *_: note('reload'));" + SERVE
    bench.add("alert", 0, reloading)
    bench.add("infer", 1, reloading)
    sent = []

    def turn(bench, children):
        if not sent and "infer ready" in bench.said and not bench.log.of("reloading"):
            sent.append(os.kill(os.getpid(), signal.SIGHUP))
        if "infer reload" in bench.said and len(sent) == 1:
            sent.append(bench.supervisor.stop())

    bench.run(turn=turn)
    assert "alert reload" not in bench.said


def test_strangers_cannot_speak_for_a_child(bench):
    """A READY from a process that is no child (here: a grandchild) must not count."""
    body = """
        if os.fork() == 0:
            tell("READY=1")
            os._exit(0)
        os.wait()
        note("told")
        time.sleep(60)
    """
    bench.add("alert", 0, body, ready_s=1.0)
    outcome = bench.run()
    assert "alert told" in bench.said
    assert outcome.code is ExitCode.NOT_STARTED


def test_lines_of_many_children_are_never_mixed(bench):
    body = """
        tell("READY=1")
        for i in range(300):
            os.write(1, f"{name} {i} ".encode())
            os.write(2, b"x" * 200 + b"\\n")
        sys.exit(0)
    """
    bench.add("alert", 0, SERVE)
    for camera in "abc":
        bench.add(f"capture-{camera}", 2, body)
    bench.run()
    lines = bench.output.splitlines()
    for camera in "abc":
        mine = [line for line in lines if line.startswith(f"capture-{camera} ")]
        assert mine == [f"capture-{camera} {i} {'x' * 200}" for i in range(300)]


def test_children_die_with_a_killed_supervisor(tmp_path):
    child = tmp_path / "child.py"
    child.write_text(PRELUDE + SERVE)
    program = tmp_path / "supervisor.py"
    program.write_text(
        textwrap.dedent(f"""
        import sys
        from pathlib import Path
        from edge.line import Spec, role
        from edge.passthrough import Passthrough
        from edge.supervisor import Hooks, Supervisor
        class Log:
            def info(self, event, **fields): print(event, fields.get("pid", ""), flush=True)
            warning = error = info
        command = lambda spec: [sys.executable, "-S", {str(child)!r}, spec.name, {str(tmp_path / "journal")!r}]
        Supervisor([Spec("alert", role("alert"), ())], command, Path({str(tmp_path)!r}), Log(), Passthrough(2)).run()
        """)
    )
    with subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith("ready"):
                pid = int(line.split()[1])
                break
        process.kill()
        process.wait()
    end = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists():
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":  # dead, and waits for a reaper that this container may not have
            break
        assert time.monotonic() < end, "the child outlived its supervisor"
        time.sleep(0.01)


def test_output_that_nobody_reads_never_makes_anyone_wait():
    read, write = os.pipe()
    try:
        output = Passthrough(write, max_bytes=100_000)
        begin = time.monotonic()
        for i in range(5000):
            output.line(b"%06d " % i + b"y" * 93)
            output.pump()
        output.drain(0.05)
        assert time.monotonic() - begin < 5.0
        assert output.dropped > 3000
        os.set_blocking(read, False)
        text = io.BytesIO()
        while output.waiting:
            text.write(os.read(read, 1 << 20))
            output.pump()
        output.line(b"last")
        output.pump()
        text.write(os.read(read, 1 << 20))
        lines = text.getvalue().splitlines()
        kept = len(lines) - 2
        assert [int(line[:6]) for line in lines[:kept]] == list(range(kept))
        assert b"lines dropped" in lines[-2]
        assert lines[-1] == b"last"
    finally:
        os.close(read)
        os.close(write)


def test_closed_output_is_no_error():
    read, write = os.pipe()
    os.close(read)
    output = Passthrough(write)
    output.line(b"to nobody")
    output.drain()
    assert not output.waiting
    os.close(write)
