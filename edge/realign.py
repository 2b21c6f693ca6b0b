"""`edge realign`: somebody who looked says that trigger and frame are in step again; captures judge from now on."""

from __future__ import annotations

import os
import signal

from edge.errors import LineNotRunning, SettingsError
from edge.line import process_name, role
from edge.settings import Settings
from edge.status import lock_holder
from edge.transport import Endpoints


def realign(settings: Settings, camera: str | None = None) -> list[str]:
    """Tells the capture processes of `camera`, or of all that follow the PLC's count. Returns the cameras' names.

    Raises `SettingsError` where no camera follows the PLC's count, `LineNotRunning` where none of them runs here or
    they belong to another user.
    """
    asked = [settings.camera(camera)] if camera is not None else settings.cameras
    names = [item.name for item in asked if item.trigger.numbered_by != "frame"]
    if not names:
        which = f"camera {camera}" if camera is not None else "every camera"
        raise SettingsError(
            f'{settings.file}: {which} numbers its parts by its own frames (trigger.numbered_by = "frame"): there is '
            "nothing to align"
        )
    endpoints = Endpoints(settings)
    told = []
    for name in names:
        pid = lock_holder(endpoints.lock(process_name(role("capture"), name)))
        if pid is None:
            continue
        try:
            os.kill(pid, signal.SIGHUP)
        except ProcessLookupError:
            continue
        except PermissionError as error:
            raise LineNotRunning(
                f"camera {name}: its process {pid} belongs to another user; run this as that user, or with sudo"
            ) from error
        told.append(name)
    if not told:
        raise LineNotRunning(f"line {settings.line.name}: no capture process of {', '.join(names)} runs here")
    return told
