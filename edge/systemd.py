"""Installing a line as systemd services: what is written where, and what has to be true before.

Everything is planned first and checked; then files are written one by one, each by rename. Installing twice changes
nothing. Verdicts, archive and bundles are never touched.
"""

from __future__ import annotations

import grp
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from edge.errors import SettingsError
from edge.frames import Geometry
from edge.line import ROLES
from edge.settings import CameraSettings, Settings, load_settings
from edge.settings_genicam import GigeSource
from edge.systemd_units import SYSUSERS, USER, CaptureFacts, capture_drop_in, templates, writable_drop_in
from pipelines.errors import InspectError

UNITS = Path("etc/systemd/system")
LINES = Path("etc/edge-inspect")
SYSUSERS_FILE = Path("etc/sysusers.d/edge-inspect.conf")
STATE = Path("/var/lib/edge-inspect")
DROP_IN = "10-line.conf"
_HIDDEN = (Path("/home"), Path("/root"), Path("/run/user"), Path("/tmp"), Path("/var/tmp"))  # noqa: S108


class InstallError(InspectError):
    """A line that cannot be installed as it is; nothing was written."""


@dataclass
class Plan:
    """What is to be on disk, relative to the root of the file system."""

    files: dict[Path, str] = field(default_factory=dict)
    links: dict[Path, str] = field(default_factory=dict)  # link: target
    stale: list[Path] = field(default_factory=list)  # of an earlier install, to be removed


def plan_install(file: Path, root: Path, executable: Path, systemd_version: int) -> Plan:
    """Everything that installing the line in `file` means.

    Raises `SettingsError` where the settings are not usable, `InstallError` where services could not use them.
    """
    settings = load_settings(file)
    _check_readable_by_services(settings, executable)
    _check_absolute(file, settings)
    line = settings.line.name
    plan = Plan()
    plan.files[SYSUSERS_FILE] = SYSUSERS
    for name, text in templates(executable, systemd_version).items():
        plan.files[UNITS / name] = text
    plan.files[LINES / f"{line}.toml"] = file.read_text(encoding="utf-8")
    for camera in settings.cameras:
        unit = f"edge-capture@{line}:{camera.name}.service"
        plan.files[UNITS / f"{unit}.d" / DROP_IN] = capture_drop_in(_facts(settings, camera))
        plan.links[UNITS / f"edge-line@{line}.target.wants" / unit] = "/" + str(UNITS / "edge-capture@.service")
    if settings.plc is not None:
        unit = f"edge-plc@{line}.service"
        plan.links[UNITS / f"edge-line@{line}.target.wants" / unit] = "/" + str(UNITS / "edge-plc@.service")
    alert = writable_drop_in(tuple(_outside(settings.line.data_dir, settings.archive.dir)))
    if alert:
        plan.files[UNITS / f"edge-alert@{line}.service.d" / DROP_IN] = alert
    wanted = {*plan.files, *plan.links}
    plan.stale = [path for path in _of_line(root, line) if path not in wanted]
    return plan


def plan_uninstall(line: str, root: Path) -> Plan:
    """Removal of a line, and of the units for all lines with the last one. Its settings file stays."""
    plan = Plan(stale=list(_of_line(root, line)))
    if not plan.stale:
        raise InstallError(f"{root / UNITS}: no line {line} is installed there")
    wants = (root / UNITS).glob("edge-line@*.target.wants")
    if not any(folder.name != f"edge-line@{line}.target.wants" for folder in wants):
        shared = [SYSUSERS_FILE, *(UNITS / name for name in templates())]
        plan.stale += [path for path in shared if (root / path).is_file()]
    return plan


def apply(plan: Plan, root: Path, dry_run: bool = False) -> Iterator[str]:
    """Does what is planned; yields one line for people per file. Raises `InstallError` where it may not."""
    path = root
    try:
        for relative, text in plan.files.items():
            path = root / relative
            if path.is_file() and path.read_text(encoding="utf-8") == text:
                yield f"unchanged  {path}"
                continue
            yield f"{'would write' if dry_run else 'wrote'}  {path}"
            if not dry_run:
                _write(path, text, private=relative.parent == LINES)
        for relative, target in plan.links.items():
            path = root / relative
            if path.is_symlink() and str(path.readlink()) == target:
                yield f"unchanged  {path}"
                continue
            yield f"{'would link' if dry_run else 'linked'}  {path} -> {target}"
            if not dry_run:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.unlink(missing_ok=True)
                path.symlink_to(target)
        for relative in plan.stale:
            path = root / relative
            yield f"{'would remove' if dry_run else 'removed'}  {path}"
            if not dry_run:
                path.unlink(missing_ok=True)
                if path.parent.suffix in (".d", ".wants") and not any(path.parent.iterdir()):
                    path.parent.rmdir()
    except OSError as error:
        advice = "; run it as root, or give --root" if isinstance(error, PermissionError) else ""
        raise InstallError(f"{path}: cannot be written: {error.strerror}{advice}") from error


def tell_systemd(root: Path) -> list[str]:
    """Makes a running systemd know of it, where there is one; returns the commands that are left to a person."""
    commands = [["systemd-sysusers", str(root / SYSUSERS_FILE)], ["systemctl", "daemon-reload"]]
    if not (root / SYSUSERS_FILE).exists():
        commands = commands[1:]
    if root != Path("/") or not Path("/run/systemd/system").is_dir():
        return [" ".join(command) for command in commands]
    for command in commands:
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
            raise InstallError(f"`{' '.join(command)}` failed: {said}") from error
    for file in (root / LINES).glob("*.toml"):
        try:
            os.chown(file, 0, grp.getgrnam(USER).gr_gid)
        except KeyError as error:
            raise InstallError(f"there is no group {USER} after `{' '.join(commands[0])}`") from error
    return []


def systemd_version() -> int:
    """Version of this host's systemd; 0 where there is none."""
    try:
        said = subprocess.run(["systemctl", "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return 0
    found = re.match(r"systemd (\d+)", said)
    return int(found.group(1)) if found else 0


def own_executable() -> Path:
    """The `edge` of this installation. Raises `InstallError` where there is none."""
    beside = Path(sys.executable).parent / "edge"
    found = str(beside) if beside.is_file() else shutil.which("edge")
    if found is None:
        raise InstallError("the edge command of this installation was not found; name it with --executable")
    return Path(found)


def _facts(settings: Settings, camera: CameraSettings) -> CaptureFacts:
    rate, size = camera.source.known_rate_hz, camera.source.known_frame_bytes
    ring = None
    if rate is not None and size is not None:
        ring = Geometry(settings.ring_slots(camera, rate), size).total_bytes
    truth = getattr(camera.source, "truth_file", None)
    outside = tuple(_outside(truth.parent if truth else None))
    packet_socket = isinstance(camera.source, GigeSource) and camera.source.socket != "udp"
    return CaptureFacts(settings.line.name, camera.name, ring, outside, packet_socket)


def _outside(*folders: Path | None) -> Iterator[Path]:
    for folder in folders:
        if folder is not None and not folder.is_relative_to(STATE):
            yield folder


def _of_line(root: Path, line: str) -> Iterator[Path]:
    """What an earlier install of this line left, relative to `root`."""
    units = root / UNITS
    names = "|".join(row.name for row in ROLES)
    instance = re.compile(rf"edge-(?:{names})@{re.escape(line)}(?::[a-z0-9-]+)?\.service\.d")
    for folder in sorted(units.glob("edge-*@*")):
        if folder.name == f"edge-line@{line}.target.wants":
            yield from (path.relative_to(root) for path in sorted(folder.iterdir()) if path.is_symlink())
        elif instance.fullmatch(folder.name) and (folder / DROP_IN).is_file():
            yield (folder / DROP_IN).relative_to(root)


def _write(path: Path, text: str, private: bool) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o640 if private else 0o644)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, 0o640 if private else 0o644)  # settings may hold a camera's password
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _check_readable_by_services(settings: Settings, executable: Path) -> None:
    """Services see no home and no temporary folders (ProtectHome=, PrivateTmp=)."""
    named = [("the edge command", executable), *_paths(settings, "")]
    faults = [
        f"{key}: {path}: services may not look below {hidden}; move it, for instance to {STATE}"
        for key, path in named
        for hidden in _HIDDEN
        if path.is_relative_to(hidden)
    ]
    if faults:
        raise InstallError("\n".join(faults))


def _check_absolute(file: Path, settings: Settings) -> None:
    """The installed copy lies in another folder: paths relative to the file would point elsewhere."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / file.name
        shutil.copyfile(file, copy)
        elsewhere = load_settings(copy)
    moved = dict(_paths(elsewhere, ""))
    faults = [f"{file}: {key}: give the whole path: {path}" for key, path in _paths(settings, "") if moved[key] != path]
    if faults:
        raise SettingsError("\n".join(faults))


def _paths(value: Any, key: str) -> Iterator[tuple[str, Path]]:
    """Every path in the settings, with its key."""
    if isinstance(value, Path):
        yield key, value
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from _paths(getattr(value, name), f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _paths(item, f"{key}[{number}]")
