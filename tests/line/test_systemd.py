"""The systemd units: generated, shipped and documented ones agree with the table, and systemd finds nothing wrong."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edge.line import ROLES, markdown_table, role
from edge.systemd import LINES, UNITS, InstallError, apply, plan_install, plan_uninstall, systemd_version
from edge.systemd_units import EXECUTABLE, SYSUSERS, CaptureFacts, capture_drop_in, templates

ROOT = Path(__file__).parents[2]
LINE = """
[line]
name = "press-4"
[[cameras]]
name = "top"
[cameras.source]
type = "simulated"
height_px = 2048
width_px = 2448
[[cameras]]
name = "side"
[cameras.source]
type = "opencv"
url = "rtsp://user:secret@camera/stream"
[inference]
bundle = "/var/lib/edge-inspect/bundles/tile"
"""
ANALYZE = shutil.which("systemd-analyze")
needs_systemd = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")


@pytest.fixture(autouse=True)
def no_settings_variables(monkeypatch):
    for name in list(os.environ):
        if name.startswith("EDGE_"):
            monkeypatch.delenv(name)


@pytest.fixture
def line_file(tmp_path) -> Path:
    file = tmp_path / "line.toml"
    file.write_text(LINE)
    return file


def run_edge(*arguments: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "edge.cli", *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


def keys(text: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in text.splitlines():
        if "=" in row and not row.startswith("#"):
            key, _, value = row.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("name", [row.name for row in ROLES])
def test_units_say_what_the_table_says(name):
    row = role(name)
    unit = keys(templates()[f"edge-{name}@.service"])
    assert unit["Type"] == ["notify"]
    assert unit["WatchdogSec"] == [f"{row.watchdog_s:g}"]
    assert unit["TimeoutStartSec"] == [f"{row.ready_s:g}"]
    assert unit["TimeoutStopSec"] == [f"{row.stop_s:g}"]
    assert unit["StartLimitBurst"] == [str(row.restart.budget + 1)]  # the first start counts too
    assert unit["StartLimitIntervalSec"] == [f"{row.restart.window_s:g}"]
    assert unit["MemoryMax"] == [f"{row.memory_mib}M"]
    assert unit["CPUWeight"] == [str(row.cpu_weight)]
    assert unit["OOMScoreAdjust"] == [str(row.oom_score)]
    assert ("ExecReload" in unit) == row.reloads
    assert {f"{name}={value}" for name, value in row.environment} <= set(unit["Environment"])
    assert unit["ExecStart"][0].startswith(f"{EXECUTABLE} {' '.join(row.words)} ")
    assert ("LimitRTPRIO" in unit) == (name == "plc") == ("RestrictRealtime" not in unit)


def test_start_order_is_the_tables():
    units = templates()
    assert "edge-alert@%i.service" in keys(units["edge-infer@.service"])["After"]
    assert "edge-plc@%i.service" in keys(units["edge-alert@.service"])["After"]
    assert not any("edge-" in after for after in keys(units["edge-plc@.service"])["After"])
    after = keys(capture_drop_in(CaptureFacts("press-4", "top", 1)))["After"]
    assert after == ["edge-plc@press-4.service edge-alert@press-4.service edge-infer@press-4.service"]


def test_shipped_units_are_the_generated_ones():
    shipped = {path.name: path.read_text() for path in (ROOT / "systemd").iterdir()}
    assert shipped == {**templates(), "edge-inspect.sysusers": SYSUSERS}, "run `edge systemd show --out systemd`"


def test_documented_table_is_the_table():
    assert markdown_table() in (ROOT / "docs" / "running.md").read_text()


def test_documented_exit_codes_are_the_ones_there_are():
    from edge.supervisor import ExitCode

    text = (ROOT / "docs" / "running.md").read_text()
    documented = {int(number) for number in re.findall(r"^\| (\d) \|", text, re.MULTILINE)}
    assert documented == {int(code) for code in ExitCode}


def test_newer_systemd_gets_the_whole_back_off():
    unit = keys(templates(systemd_version=254)["edge-alert@.service"])
    restart = role("alert").restart
    assert unit["RestartMaxDelaySec"] == [f"{restart.backoff_max_s:g}"]
    assert int(unit["RestartSteps"][0]) >= 1
    assert "RestartSteps" not in keys(templates(systemd_version=253)["edge-alert@.service"])


def verify(folder: Path, unit: str) -> str:
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"}
    done = subprocess.run(
        [ANALYZE, "verify", "--man=no", str(folder / unit)], capture_output=True, text=True, env=environment, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


@needs_systemd
def test_systemd_finds_nothing_wrong(tmp_path):
    units = templates(executable=Path("/bin/true"), systemd_version=systemd_version())
    for name, text in units.items():
        (tmp_path / name).write_text(text)
    # `verify` takes what follows a colon for an alias, so the drop-in of LINE:CAMERA is tried on the template.
    drop_in = tmp_path / "edge-capture@.service.d"
    drop_in.mkdir()
    (drop_in / "10-line.conf").write_text(
        capture_drop_in(CaptureFacts("press-4", "top", 10**9, (Path("/srv/truth"),), packet_socket=True))
    )
    for unit in ("edge-alert@press-4.service", "edge-infer@press-4.service", "edge-line@press-4.target"):
        assert verify(tmp_path, unit) == ""
    assert verify(tmp_path, "edge-capture@.service") == ""


@needs_systemd
def test_systemd_does_find_a_misspelt_key(tmp_path):
    """Guards the test above: verify must really read the files."""
    text = templates(executable=Path("/bin/true"))["edge-alert@.service"].replace("WatchdogSec", "WatchDogSeconds")
    (tmp_path / "edge-alert@.service").write_text(text)
    assert "WatchDogSeconds" in verify(tmp_path, "edge-alert@press-4.service")


@needs_systemd
def test_services_are_not_exposed(tmp_path):
    if systemd_version() < 250:
        pytest.skip("systemd-analyze security --offline needs systemd 250")
    for row in ROLES:
        path = tmp_path / f"edge-{row.name}@.service"
        path.write_text(templates(executable=Path("/bin/true"))[path.name])
        done = subprocess.run(
            [ANALYZE, "security", "--offline=true", "--threshold=20", "--no-pager", str(path)],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout[-300:]  # exposure of at most 2.0 of 10


def test_install_writes_once_and_uninstall_leaves_settings_only(line_file, tmp_path):
    root = tmp_path / "root"
    arguments = ("systemd", "install", line_file, "--root", root, "--executable", "/opt/edge-inspect/bin/edge")
    dry = run_edge(*arguments, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert not root.exists()
    first = run_edge(*arguments)
    assert first.returncode == 0, first.stderr
    assert [row.split()[-1] for row in dry.stdout.splitlines() if row.startswith("would")] == [
        row.split()[-1] for row in first.stdout.splitlines() if row.startswith(("wrote", "linked"))
    ]
    assert "systemctl enable --now edge-line@press-4.target" in first.stdout
    settings = root / LINES / "press-4.toml"
    assert settings.stat().st_mode & 0o777 == 0o640  # it may hold a camera's password
    wants = root / UNITS / "edge-line@press-4.target.wants"
    assert sorted(path.name for path in wants.iterdir()) == [
        "edge-capture@press-4:side.service",
        "edge-capture@press-4:top.service",
    ]
    again = run_edge(*arguments)
    said = [row for row in again.stdout.splitlines() if str(root) in row and not row.startswith(" ")]
    assert said
    assert all(row.startswith("unchanged") for row in said)
    removed = run_edge("systemd", "uninstall", "press-4", "--root", root)
    assert removed.returncode == 0, removed.stderr
    left = [path for path in root.rglob("*") if path.is_file() or path.is_symlink()]
    assert left == [settings]
    second = run_edge("systemd", "uninstall", "press-4", "--root", root)
    assert second.returncode == 1
    assert second.stderr.startswith("error: ")


def test_camera_that_left_the_settings_leaves_the_units(line_file, tmp_path):
    root = tmp_path / "root"
    list(apply(plan_install(line_file, root, EXECUTABLE, 252), root))
    text = line_file.read_text()
    begin = text.index('[[cameras]]\nname = "side"')
    line_file.write_text(text[:begin] + text[text.index("[inference]") :])
    list(apply(plan_install(line_file, root, EXECUTABLE, 252), root))
    units = sorted(path.name for path in (root / UNITS).iterdir() if "press-4:" in path.name)
    assert units == ["edge-capture@press-4:top.service.d"]
    wants = root / UNITS / "edge-line@press-4.target.wants"
    assert [path.name for path in wants.iterdir()] == ["edge-capture@press-4:top.service"]


def test_a_line_with_a_plc_wants_its_service(line_file, tmp_path):
    root = tmp_path / "root"
    assert "edge-plc" not in templates()["edge-line@.target"]
    line_file.write_text(line_file.read_text() + '[plc]\n[plc.adapter]\ntype = "simulated"\n')
    list(apply(plan_install(line_file, root, EXECUTABLE, 252), root))
    link = root / UNITS / "edge-line@press-4.target.wants" / "edge-plc@press-4.service"
    assert str(link.readlink()) == "/etc/systemd/system/edge-plc@.service"
    line_file.write_text(LINE)
    list(apply(plan_install(line_file, root, EXECUTABLE, 252), root))
    assert not link.is_symlink()


def test_uninstalling_one_line_keeps_the_units_of_another(line_file, tmp_path):
    root = tmp_path / "root"
    list(apply(plan_install(line_file, root, EXECUTABLE, 252), root))
    line_file.write_text(line_file.read_text().replace("press-4", "press"))
    list(apply(plan_install(line_file, root, EXECUTABLE, 252), root))
    list(apply(plan_uninstall("press", root), root))
    assert (root / UNITS / "edge-alert@.service").is_file()
    assert (root / UNITS / "edge-capture@press-4:top.service.d" / "10-line.conf").is_file()
    assert not (root / UNITS / "edge-line@press.target.wants").exists()


def test_only_a_camera_received_by_packet_socket_may_open_one():
    for packet_socket in (True, False):
        drop_in = keys(capture_drop_in(CaptureFacts("press-4", "top", 1, packet_socket=packet_socket)))
        assert drop_in.get("AmbientCapabilities", []) == ["CAP_NET_RAW"] * packet_socket
        assert drop_in.get("CapabilityBoundingSet", []) == ["CAP_NET_RAW"] * packet_socket
        assert drop_in.get("RestrictAddressFamilies", []) == ["AF_PACKET"] * packet_socket


def test_ring_counts_as_memory_of_capture(line_file, tmp_path):
    plan = plan_install(line_file, tmp_path, EXECUTABLE, 252)
    drop_ins = {path.parent.name: keys(text) for path, text in plan.files.items() if path.name == "10-line.conf"}
    limit = drop_ins["edge-capture@press-4:top.service.d"]["MemoryMax"][0]
    frames = 2048 * 2448 / 2**20 * 7  # at least 0.5 s of deadline and some spare at 10 frames/s
    assert int(limit.removesuffix("M")) > role("capture").memory_mib + frames
    assert drop_ins["edge-capture@press-4:side.service.d"]["MemoryMax"] == ["infinity"]


@pytest.mark.parametrize("path", ["/home/eve/bundle", "/root/bundle", "/tmp/bundle"])
def test_paths_that_services_cannot_see_are_refused(line_file, tmp_path, path):
    line_file.write_text(line_file.read_text().replace("/var/lib/edge-inspect/bundles/tile", path))
    with pytest.raises(InstallError, match=f"inference.bundle: {path}"):
        plan_install(line_file, tmp_path, EXECUTABLE, 252)


def test_relative_paths_are_refused_because_the_file_moves(line_file, tmp_path):
    text = line_file.read_text().replace("[line]", '[line]\nkeys_dir = "keys"')
    line_file.write_text(text)
    done = run_edge("systemd", "install", line_file, "--root", tmp_path / "root", "--executable", EXECUTABLE)
    assert done.returncode == 1
    assert "line.keys_dir" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "root").exists()


def test_unusable_settings_write_nothing(line_file, tmp_path):
    line_file.write_text(line_file.read_text() + "\nbatch_maximum = 3\n")
    root = tmp_path / "root"
    done = run_edge("systemd", "install", line_file, "--root", root, "--executable", EXECUTABLE)
    assert done.returncode == 1
    assert "batch_maximum" in done.stderr
    assert not root.exists()
