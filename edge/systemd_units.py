"""The text of the systemd units, from the one table in `edge.line`.

Templates know no line: an instance is `LINE` for edge-line@, edge-plc@, edge-alert@ and edge-infer@, and `LINE:CAMERA`
for edge-capture@ (names hold no colon, so nothing has to be escaped). What a capture unit cannot learn from its
instance - which target it belongs to, how large its ring is - stands in a drop-in for that instance.

The services run as one system user, not as dynamic users: they share sockets in /run/edge-inspect and rings in
/dev/shm, which `DynamicUser=` (through `RemoveIPC=`) would remove with the last service, and with them the journal
that gives parts in flight their verdict after a crash.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from edge.line import ABORT_S, ROLES, Role, role

USER = "edge-inspect"
EXECUTABLE = Path("/opt/edge-inspect/bin/edge")  # in the shipped copy; `edge systemd install` puts its own here
BACKOFF_VERSION = 254  # the first systemd with RestartSteps=

SYSUSERS = f"""\
# The system user of all inspection lines. Groups: video for V4L2 cameras, render for GPUs and NPUs.
u {USER} - "Visual inspection lines" /var/lib/edge-inspect
m {USER} video
m {USER} render
"""

# What no service of a line ever needs. Left out on purpose: MemoryDenyWriteExecute= (inference engines compile to
# memory), ProcSubset=pid (the boot id in /proc/sys names the host's clock) and PrivateNetwork= (cameras, other hosts).
_HARDENING = """\
NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateMounts=yes
ProtectProc=invisible
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
ProtectClock=yes
ProtectHostname=yes
RestrictNamespaces=yes
RestrictSUIDSGID=yes
RestrictRealtime=yes
LockPersonality=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallErrorNumber=EPERM
UMask=0077
"""

_DEVICES = {
    "plc": "# Digital outputs.\nDevicePolicy=closed\nDeviceAllow=char-gpiochip rw",
    "alert": "PrivateDevices=yes",
    "infer": "# GPUs and NPUs; names of device classes that this host does not have are skipped.\n"
    "DevicePolicy=closed\n"
    "DeviceAllow=char-nvidia* rw\nDeviceAllow=char-nvhost* rw\nDeviceAllow=char-drm rw\nDeviceAllow=char-accel rw",
    "capture": "DevicePolicy=closed\nDeviceAllow=char-video4linux rw",
}
_LOCKED = {"plc": "0", "alert": "0", "infer": "infinity", "capture": "infinity"}  # pinned host memory, camera buffers

_PACKET_SOCKET = """\
# Frames of this camera are received by a packet socket.
CapabilityBoundingSet=CAP_NET_RAW
AmbientCapabilities=CAP_NET_RAW
RestrictAddressFamilies=AF_PACKET
"""


@dataclass(frozen=True)
class CaptureFacts:
    """What the drop-in of one capture instance says."""

    line: str
    camera: str
    ring_bytes: int | None  # None: not known before the camera is open
    writable: tuple[Path, ...] = ()  # folders outside the line's state folder
    packet_socket: bool = False  # whether a GigE Vision camera is received by one


def templates(executable: Path = EXECUTABLE, systemd_version: int = 0) -> dict[str, str]:
    """Unit files by name: they serve every line of this host."""
    units = {"edge-line@.target": _target()}
    for row in ROLES:
        units[f"edge-{row.name}@.service"] = _service(row, executable, systemd_version)
    return units


def capture_drop_in(facts: CaptureFacts) -> str:
    """Drop-in of edge-capture@LINE:CAMERA.service."""
    row = role("capture")
    if facts.ring_bytes is None:
        memory = "# The ring's size is known only when the camera is open, so its memory cannot be limited here.\n"
        memory += "MemoryMax=infinity\n"
    else:
        ring = math.ceil(facts.ring_bytes / 2**20)
        memory = f"# {row.memory_mib} MiB and the frame ring of {ring} MiB, which counts as this service's.\n"
        memory += f"MemoryMax={row.memory_mib + ring}M\n"
    before = "".join(f" edge-{other.name}@{facts.line}.service" for other in _before(row))
    return (
        "[Unit]\n"
        f"Description=Inspection line {facts.line}: camera {facts.camera}\n"
        f"PartOf=edge-line@{facts.line}.target\n"
        f"After={before.strip()}\n"
        "\n[Service]\n"
        f"StateDirectory=edge-inspect/{facts.line}\n"
        f"{memory}{_writable(facts.writable)}{_PACKET_SOCKET if facts.packet_socket else ''}"
    )


def writable_drop_in(folders: tuple[Path, ...]) -> str:
    """Drop-in of a service that writes outside the line's state folder; empty where it does not."""
    return f"[Service]\n{_writable(folders)}" if folders else ""


def _writable(folders: tuple[Path, ...]) -> str:
    return "".join(f"ReadWritePaths={folder}\n" for folder in folders)


def _hardening(row: Role) -> str:
    """The PLC's service alone may have real-time priority: nothing else has to be punctual to the millisecond."""
    text = _HARDENING.rstrip("\n")
    return text.replace("RestrictRealtime=yes", "LimitRTPRIO=80") if row.name == "plc" else text


def _before(row: Role) -> list[Role]:
    """The rows that start before this one, first to last."""
    return sorted(
        (other for other in ROLES if other.start_order < row.start_order), key=lambda other: other.start_order
    )


def _target() -> str:
    services = " ".join(f"edge-{row.name}@%i.service" for row in ROLES if not row.per_camera and not row.section)
    return (
        "# One inspection line. Its cameras and its PLC are wanted by links that `edge systemd install` makes.\n"
        "[Unit]\n"
        "Description=Inspection line %i\n"
        f"Wants={services}\n"
        "\n[Install]\n"
        "WantedBy=multi-user.target\n"
    )


def _service(row: Role, executable: Path, systemd_version: int) -> str:
    argument = "%i" if row.per_camera else "/etc/edge-inspect/%i.toml"
    unit = [f"Description=Inspection line %i: {row.summary}"]
    if not row.per_camera:
        unit.append("PartOf=edge-line@%i.target")
        unit += [f"After=edge-{other.name}@%i.service" for other in _before(row)]
    unit += [
        "After=network-online.target",
        f"StartLimitIntervalSec={row.restart.window_s:g}",
        f"StartLimitBurst={row.restart.budget + 1}",
    ]
    backoff = [f"RestartSec={row.restart.backoff_s * 1000:g}ms"]
    if systemd_version >= BACKOFF_VERSION:
        steps = math.ceil(math.log2(row.restart.backoff_max_s / row.restart.backoff_s))
        backoff += [f"RestartMaxDelaySec={row.restart.backoff_max_s:g}", f"RestartSteps={steps}"]
    service = [
        "Type=notify",
        "NotifyAccess=main",
        f"ExecStart={executable} {' '.join(row.words)} {argument}",
        *(["ExecReload=/bin/kill -HUP $MAINPID"] if row.reloads else []),
        "Restart=on-failure",
        *backoff,
        f"TimeoutStartSec={row.ready_s:g}",
        f"WatchdogSec={row.watchdog_s:g}",
        f"TimeoutAbortSec={ABORT_S:g}",
        f"TimeoutStopSec={row.stop_s:g}",
        "KillMode=mixed",
        "",
        f"User={USER}",
        f"Group={USER}",
        "RuntimeDirectory=edge-inspect",
        "RuntimeDirectoryMode=0700",
        "# The services of all lines share it: one that stops must not take the sockets of the others with it.",
        "RuntimeDirectoryPreserve=yes",
        *([] if row.per_camera else ["StateDirectory=edge-inspect/%i"]),
        "StateDirectoryMode=0700",
        *(
            ["CacheDirectory=edge-inspect", "Environment=EDGE_ENGINE_CACHE=/var/cache/edge-inspect"]
            if row.name == "infer"
            else []
        ),
        "",
        "# Logs go to the journal as one JSON object a line.",
        "StandardOutput=journal",
        "StandardError=journal",
        f"SyslogIdentifier=edge-{row.name}",
        "Environment=EDGE_LOG__FORMAT=json PYTHONFAULTHANDLER=1 PYTHONUNBUFFERED=1",
        *(f"Environment={name}={value}" for name, value in row.environment),
        "",
        f"CPUWeight={row.cpu_weight}",
        f"MemoryMax={row.memory_mib}M",
        f"TasksMax={row.tasks}",
        f"OOMScoreAdjust={row.oom_score}",
        "LimitNOFILE=4096",
        f"LimitMEMLOCK={_LOCKED[row.name]}",
        "",
        _DEVICES[row.name],
        _hardening(row),
    ]
    return "[Unit]\n" + "\n".join(unit) + "\n\n[Service]\n" + "\n".join(service) + "\n"
