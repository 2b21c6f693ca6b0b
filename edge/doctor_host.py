"""Processor, memory, shared memory, disk and permissions."""

from __future__ import annotations

import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from edge.doctor import Finding, Host, fault, ok, warning
from edge.frames import ring_directory
from edge.shm import mebibytes

if TYPE_CHECKING:
    from edge.settings import Settings

GIB = 1 << 30
_CAP_NET_RAW, _CAP_SYS_NICE = 13, 23  # bits of CapEff, capabilities(7)
_ROOMY_SHM = 256 << 20


def processor(host: Host, settings: Settings | None) -> Iterator[Finding]:
    """What the CPU computes fast, and whether it is kept from it."""
    text = host.read("/proc/cpuinfo") or ""
    fields = dict(_pair(line) for line in text.split("\n\n", 1)[0].splitlines())
    name = fields.get("model name", "unknown processor")
    flags = set(fields.get("flags", "").split())
    has = [
        label
        for label, flag in (
            ("AMX", "amx_bf16"),
            ("AVX-512 VNNI", "avx512_vnni"),
            ("AVX-512", "avx512f"),
            ("AVX2", "avx2"),
        )
        if flag in flags
    ]
    if flags and "avx2" not in flags:
        yield warning("processor", f"{name} has no AVX2: the CPU engines are slow on it", "use a GPU or a newer CPU")
    else:
        yield ok("processor", f"{name}: {', '.join(has) or 'no flags told'}; {os.cpu_count()} cores")
    governor = host.read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if governor not in (None, "performance"):
        fix = "as root, `cpupower frequency-set -g performance`"
        yield warning("CPU clocks", f"governor {governor}: frames after a pause take longer", fix)


def memory(host: Host, settings: Settings | None) -> Iterator[Finding]:
    """Is there memory for the line's processes?"""
    fields = dict(_pair(line) for line in (host.read("/proc/meminfo") or "").splitlines())
    available = fields.get("MemAvailable", "").split()
    if not available:
        return
    free = int(available[0]) << 10
    if free < 2 * GIB:
        yield warning("memory", f"{mebibytes(free)} available; inference alone may take 2 GiB", "close other programs")
    else:
        yield ok("memory", f"{mebibytes(free)} available")


def shared_memory(host: Host, settings: Settings | None) -> Iterator[Finding]:
    """Is there room for the frame rings? With a line, `edge config check` names what it needs."""
    folder = ring_directory()
    try:
        disk = os.statvfs(folder)
    except OSError as error:
        yield fault("shared memory", f"{folder}: {error.strerror}", "mount a tmpfs there, or set EDGE_SHM_DIR")
        return
    free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
    if free < _ROOMY_SHM:
        fix = f"as root, `mount -o remount,size=1G {folder}`; in a container, --shm-size=1g"
        yield warning("shared memory", f"{mebibytes(free)} of {mebibytes(total)} free in {folder}", fix)
    else:
        yield ok("shared memory", f"{mebibytes(free)} of {mebibytes(total)} free in {folder}")


def disk(host: Host, settings: Settings | None) -> Iterator[Finding]:
    """Is there room for the ledger and the archive?"""
    folder = settings.paths.data if settings is not None else Path.cwd()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free
    kept = settings.archive.min_free_gb * 1e9 if settings is not None and settings.archive.enabled else 0.0
    text = f"{free / 1e9:.1f} GB free for {folder}"
    if free < 0.5e9:
        yield fault("disk", text, "make room, or set line.data_dir to another disk")
    elif free < max(kept + 1e9, 5e9):
        fix = "make room: below archive.min_free_gb no frames are archived" if kept else "make room before it is full"
        yield warning("disk", text, fix)
    else:
        yield ok("disk", text)
    if not os.access(there, os.W_OK | os.X_OK):
        yield fault(
            "disk", f"{there} may not be written by this user", f"as root, `chown $USER {there}`, or line.data_dir"
        )


def permissions(host: Host, settings: Settings | None) -> Iterator[Finding]:
    """Raw sockets, real-time priority and device files."""
    status = dict(_pair(line) for line in (host.read("/proc/self/status") or "").splitlines())
    capabilities = int(status.get("CapEff", "0"), 16)
    if capabilities >> _CAP_NET_RAW & 1:
        yield ok("raw sockets", "CAP_NET_RAW is there: GigE cameras can be read past the IP stack")
    elif _has_gige(settings):
        fix = "systemd units of `edge systemd` grant CAP_NET_RAW; by hand, `setcap cap_net_raw+ep` on the Python"
        yield warning("raw sockets", "no CAP_NET_RAW: GigE packets take the slower way through UDP", fix)
    else:
        yield ok("raw sockets", "no CAP_NET_RAW, and no GigE camera needs it")
    priority, _ = resource.getrlimit(resource.RLIMIT_RTPRIO)
    if priority > 0 or capabilities >> _CAP_SYS_NICE & 1 or priority == resource.RLIM_INFINITY:
        yield ok("real-time priority", "allowed")
    elif settings is not None and getattr(settings, "plc", None) is not None:
        fix = "`@edge - rtprio 50` in /etc/security/limits.conf, or LimitRTPRIO= in the unit"
        yield warning("real-time priority", "not allowed: pulses to the ejector may come late under load", fix)
    else:
        yield ok("real-time priority", "not allowed, and nothing here needs it")
    for file in host.glob("/dev/nvidia[0-9]*") + host.glob("/dev/video[0-9]*") + host.glob("/dev/gpiochip*"):
        if not os.access(file, os.R_OK | os.W_OK):
            group = {"nvid": "video", "vide": "video", "gpio": "gpio"}[file.name[:4]]
            fix = f"`sudo usermod -aG {group} $USER`, then log in again"
            yield warning("device files", f"{file} may not be opened by this user", fix)


def _has_gige(settings: Settings | None) -> bool:
    return settings is not None and any(camera.source.type in ("gige", "gentl") for camera in settings.cameras)


def _pair(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip(), value.strip()


CHECKS = (processor, memory, shared_memory, disk, permissions)
