"""Round trips of the PLC adapters on loopback, against servers that are not ours: the peers of the tests.

    .ci/peers                                        # installs the peers
    python benchmarks/plc.py [--exchanges 2000] [--idle 10] [PROTOCOL ...]

One exchange is a read of all inputs and a write of all outputs, with new values each time. `after idle` is one exchange
after so many seconds of silence, ten times with --idle-repeats 10; `cpu` is this side's processor time for one
exchange, which a busy computer does not change. A peer that is missing is named and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from edge.alert.plc.adapter import Adapter, Inputs, Outputs, Result
from edge.alert.plc.registry import make_adapter
from edge.errors import PlcError
from edge.settings_plc import PlcSettings

ROOT = Path(__file__).parents[1]
PEERS = ROOT / ".peers"
SCRIPTS = ROOT / "tests" / "edge" / "plc" / "protocols"


class Missing(Exception):
    """A peer is not installed."""


def need(path: Path | str) -> str:
    """The path of a program. Raises `Missing`."""
    found = shutil.which(str(path), path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if found is None:
        raise Missing(f"{path} is missing; .ci/peers installs it")
    return found


def free_port() -> int:
    """A TCP port that nothing uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], ready: str | None = None, port: int = 0, **options: Any) -> Iterator[Any]:
    """A program that runs until the block ends; begins when it said `ready` or listens on `port`."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, text=True, bufsize=1, **pipes, **options)  # type: ignore[call-overload]
    try:
        process.greeting = ""
        while ready is not None and not process.greeting.startswith(ready):
            process.greeting = process.stdout.readline()
            if not process.greeting:
                raise Missing(f"{command[0]} ended with {process.wait()}")
        while port:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            if process.poll() is not None:
                raise Missing(f"{command[0]} ended with {process.returncode}")
        yield process
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def s7(folder: Path) -> Iterator[dict[str, Any]]:
    """The C server of Snap7."""
    port = free_port()
    with running([need(PEERS / "venv/bin/python"), str(SCRIPTS / "s7_server.py"), str(port)], "ready"):
        yield {"type": "s7", "host": "127.0.0.1", "port": port, "outputs_db": 1, "inputs_db": 2}


@contextlib.contextmanager
def ethernetip(folder: Path) -> Iterator[dict[str, Any]]:
    """cpppo's server."""
    port = free_port()
    command = [need(PEERS / "venv/bin/python"), "-m", "cpppo.server.enip", "--no-udp", "-a", f"127.0.0.1:{port}"]
    with running([*command, "EdgeOut=DINT[7]", "EdgeIn=DINT[5]"], port=port):
        yield {"type": "ethernetip", "host": "127.0.0.1", "port": port}


@contextlib.contextmanager
def opcua(folder: Path) -> Iterator[dict[str, Any]]:
    """node-opcua with SignAndEncrypt and a user."""
    from edge.alert.plc.certificates import create_certificate

    certificate, key = create_certificate(folder / "own", "box")
    port = free_port()
    modules = PEERS / "node"
    if not modules.exists():
        raise Missing(f"{modules} is missing; .ci/peers installs it")
    command = [need("node"), str(SCRIPTS / "opcua_server.js"), str(port), str(folder / "server"), str(certificate)]
    with running(command, "ready", cwd=modules) as server:
        yield {
            "type": "opcua",
            "url": f"opc.tcp://127.0.0.1:{port}",
            "certificate_file": certificate,
            "key_file": key,
            "server_certificates": [server.greeting.split()[2]],
            "user": "edge",
            "password_env": "BENCHMARK_PASSWORD",
        }


@contextlib.contextmanager
def broker(folder: Path) -> Iterator[tuple[int, list[str]]]:
    """Mosquitto without TLS: its port, and the options of its client programs."""
    port = free_port()
    config = folder / "mosquitto.conf"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n", encoding="utf-8")
    with running([need("mosquitto"), "-c", str(config)], port=port):
        yield port, ["-h", "127.0.0.1", "-p", str(port), "-V", "mqttv5"]


@contextlib.contextmanager
def mqtt(folder: Path) -> Iterator[dict[str, Any]]:
    """Mosquitto, and a PLC of mosquitto_sub and mosquitto_pub behind it."""
    with broker(folder) as (port, login):
        sub = [need("mosquitto_sub"), *login, "-t", "line/ask", "-q", "1"]
        pub = [need("mosquitto_pub"), *login, "-t", "line/in", "-q", "1", "-l"]
        with running(sub) as asks, running(pub) as answers:

            def answer() -> None:
                for line in asks.stdout:
                    with contextlib.suppress(OSError, ValueError):
                        answers.stdin.write(json.dumps({**json.loads(line), "ack": 1}) + "\n")
                        answers.stdin.flush()

            threading.Thread(target=answer, daemon=True).start()
            yield {"type": "mqtt", "host": "127.0.0.1", "port": port, "tls": False, "prefix": "line"}


@contextlib.contextmanager
def sparkplug(folder: Path) -> Iterator[dict[str, Any]]:
    """Mosquitto; for a minute no host has to command."""
    with broker(folder) as (port, _):
        settings = {"type": "sparkplug", "host": "127.0.0.1", "port": port, "tls": False, "command_age_ms": 60_000}
        yield {**settings, "group": "plant", "node": "press"}


PROTOCOLS: dict[str, Callable[[Path], contextlib.AbstractContextManager[dict[str, Any]]]] = {
    "s7": s7,
    "opcua": opcua,
    "mqtt": mqtt,
    "sparkplug": sparkplug,
    "ethernetip": ethernetip,
}


def connected(settings: dict[str, Any]) -> Adapter:
    """A connected adapter; a peer that is still starting gets some seconds."""
    adapter = make_adapter(PlcSettings.model_validate({"adapter": {**settings, "timeout_ms": 900}}).adapter)
    for attempt in range(20):
        try:
            adapter.connect()
            return adapter
        except PlcError:
            adapter.close()
            if attempt == 19:
                raise
            time.sleep(0.2)
    raise AssertionError


def timed(adapter: Adapter, count: int) -> tuple[float, Inputs]:
    """Milliseconds of one exchange of new values."""
    outputs = Outputs(True, count & 0xFFFF, 0, count, Result.PASS, count & 0xFFFF)
    start = time.perf_counter_ns()
    inputs = adapter.exchange(outputs)
    return (time.perf_counter_ns() - start) / 1e6, inputs


def quantile(values: list[float], share: float) -> float:
    """The value below which `share` of them lie."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Round trips of one protocol, milliseconds. Raises `Missing`, `PlcError`."""
    with tempfile.TemporaryDirectory() as folder, PROTOCOLS[name](Path(folder)) as settings:
        adapter = connected(settings)
        try:
            for count in range(100):
                timed(adapter, count)
            busy = time.process_time()
            warm = [timed(adapter, count)[0] for count in range(options.exchanges)]
            busy = time.process_time() - busy
            idle = []
            for count in range(options.idle_repeats):
                time.sleep(options.idle)
                idle.append(timed(adapter, count)[0])
        finally:
            adapter.close()
    return {
        "protocol": name,
        "exchanges": len(warm),
        "p50_ms": quantile(warm, 0.5),
        "p99_ms": quantile(warm, 0.99),
        "max_ms": max(warm),
        "cpu_ms": busy * 1000 / len(warm),
        "idle_p50_ms": quantile(idle, 0.5) if idle else None,
        "idle_max_ms": max(idle) if idle else None,
    }


def main() -> None:
    """Prints a table, one row a protocol, or JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("protocols", nargs="*", metavar="PROTOCOL", help=f"of {', '.join(PROTOCOLS)}; all if none")
    parser.add_argument("--exchanges", type=int, default=2000)
    parser.add_argument("--idle", type=float, default=10.0, help="seconds of silence before an exchange")
    parser.add_argument("--idle-repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if unknown := set(options.protocols) - set(PROTOCOLS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(PROTOCOLS)}")
    os.environ["BENCHMARK_PASSWORD"] = "let me in"
    if not options.json:
        head = " ".join(f"{word:>8}" for word in ("p50", "p99", "max", "cpu"))
        print(f"{'protocol':12} {head}   after {options.idle:g} s idle: p50, max   (ms)")
    for name in options.protocols or PROTOCOLS:
        try:
            row = measure(name, options)
        except (Missing, PlcError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            continue
        if options.json:
            print(json.dumps(row), flush=True)
            continue
        numbers = " ".join(f"{row[key]:8.2f}" for key in ("p50_ms", "p99_ms", "max_ms", "cpu_ms"))
        after = "" if row["idle_p50_ms"] is None else f"{row['idle_p50_ms']:8.2f} {row['idle_max_ms']:8.2f}"
        print(f"{name:12} {numbers}   {after}", flush=True)


if __name__ == "__main__":
    main()
