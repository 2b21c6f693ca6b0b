"""Files in shared memory: is there room, and memory that is really there.

A tmpfs hands out memory when a page is first touched. A file that was only truncated to its size therefore kills its
user with SIGBUS on a full tmpfs, perhaps days later. `allocate` reserves every byte at once or raises, before the line
starts, with the command that makes room.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from edge.errors import RingError, SharedMemoryTooSmall

_STEP = 64 << 20  # sizes in advice are rounded up to this


def mebibytes(size: int) -> str:
    """`size` bytes for people, in MiB."""
    return f"{size / (1 << 20):.0f} MiB" if size >= 10 << 20 else f"{size / (1 << 20):.1f} MiB"


def check_room(path: Path, needed: int, freed: int = 0) -> None:
    """Raises `SharedMemoryTooSmall`, naming the fix, unless the folder of `path` has `needed` bytes free.

    `freed` is what removing the file that lies at `path` now would give back, once its readers let go.
    """
    disk = os.statvfs(path.parent)
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        raise SharedMemoryTooSmall(_advice(path, needed, free, disk.f_blocks * disk.f_frsize, freed))


def allocate(fd: int, path: Path, size: int, freed: int = 0) -> None:
    """Gives the open file `size` bytes of memory that is really there.

    Raises `SharedMemoryTooSmall`, naming the fix, where there is no room.
    """
    check_room(path, size, freed)
    try:
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.ENOMEM, errno.EDQUOT):
            disk = os.statvfs(path.parent)
            free, total = disk.f_bavail * disk.f_frsize, disk.f_blocks * disk.f_frsize
            raise SharedMemoryTooSmall(_advice(path, size, free, total, freed)) from error
        raise RingError(f"{path}: cannot reserve {mebibytes(size)}: {error.strerror}") from error


def _advice(path: Path, needed: int, free: int, total: int, freed: int) -> str:
    mount = path.parent.resolve()
    while not mount.is_mount():
        mount = mount.parent
    wanted = -(-(total - free + needed) // _STEP) * _STEP >> 20
    text = (
        f"{path}: the ring needs {mebibytes(needed)} of shared memory, and {mebibytes(free)} of "
        f"{mebibytes(total)} are free in {mount}. Fix: as root, `mount -o remount,size={wanted}M {mount}` (and "
        f"size={wanted}M in its /etc/fstab line, to last); in a container, start it with --shm-size={wanted}m"
    )
    if freed and free + freed >= needed:
        text += f"; or stop the line and remove the old ring, `rm {path}`"
    return text + ". A shorter deadline_ms or fewer ring_slots need less."
