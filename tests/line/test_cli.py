"""The edge command itself: what it imports, and how it fails."""

import subprocess
import sys

EDGE = [sys.executable, "-m", "edge.cli"]


def modules(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print('\\n'.join(sys.modules))"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


TORCH_FREE = (
    "edge.cli",
    "edge.capture.process",
    "edge.alert.process",
    "edge.status",
    "edge.run",
    "edge.supervisor",
    "edge.systemd",
    "edge.cli_config",
    "edge.cli_verdicts",
    "edge.demo",
)


def test_no_torch_where_none_is_needed():
    loaded = modules("\n".join(f"import {module}" for module in TORCH_FREE))
    assert set(TORCH_FREE) <= loaded
    assert "torch" not in loaded
    assert "openvino" not in loaded
    assert not any(name.split(".")[0] == "calibration" for name in loaded)


def test_list_of_commands_loads_no_line():
    loaded = modules("import edge.cli; edge.cli._mount(['--help'])")
    assert not loaded & {"numpy", "zmq", "pydantic", "cv2", "structlog"}


def test_help_names_every_command():
    done = subprocess.run([*EDGE, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    for command in ("run", "capture", "infer", "alert", "status", "verdicts", "bundle", "config", "keys", "weights"):
        assert f"  {command} " in done.stdout
    for command in ("demo", "systemd"):
        assert f"  {command} " in done.stdout


def test_every_group_has_help():
    code = """
import sys, edge.cli
for group in edge.cli._GROUPS:
    sys.argv = ["edge", group, "--help"]
    edge.cli.app.registered_commands = [c for c in edge.cli.app.registered_commands if c.name not in edge.cli._GROUPS]
    try:
        edge.cli.main()
    except SystemExit as end:
        assert end.code == 0, group
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for group in ("verdicts", "bundle", "config", "keys", "weights", "systemd"):
        assert f"Usage: edge {group}" in done.stdout


def test_debug_shows_the_traceback():
    plain = subprocess.run([*EDGE, "run", "/no/line.toml"], capture_output=True, text=True, timeout=60)
    assert plain.returncode == 1
    assert plain.stderr.startswith("error: /no/line.toml: ")
    assert len(plain.stderr.splitlines()) == 1
    debug = subprocess.run([*EDGE, "--debug", "run", "/no/line.toml"], capture_output=True, text=True, timeout=60)
    assert debug.returncode == 1
    assert "Traceback" in debug.stderr


def test_wrong_usage_is_2():
    done = subprocess.run([*EDGE, "run"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


def test_line_that_is_not_installed_names_where_it_was_looked_for():
    done = subprocess.run([*EDGE, "status", "press-9"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "/etc/edge-inspect/press-9.toml" in done.stderr
