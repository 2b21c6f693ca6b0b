"""State of an unfinished fit on disk: tensors as safetensors, the rest as JSON, written whole or not at all.

A fit keeps `<bundle>.fit/` beside the bundle it will write. Every random choice of a fit is a function of the seed and
the step's number, so a state needs no generator, and a resumed fit gives what an undisturbed one would have given.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
from safetensors.torch import load_file, save_file
from torch import Tensor

from calibration.errors import FitError

FORMAT = 1
LOCK = "lock"


class StateFolder:
    """Folder of one unfinished fit. `identity` says which fit: options and the images' fingerprint, JSON values."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        self.identity = json.loads(json.dumps({"format": FORMAT, **identity}))
        self._lock: int | None = None

    @classmethod
    def beside(cls, bundle: Path, identity: Mapping[str, Any]) -> StateFolder:
        """The folder that belongs to `bundle`."""
        return cls(bundle.with_name(f"{bundle.name}.fit"), identity)

    def open(self, resume: bool) -> bool:
        """Prepares the folder; True where there is something to go on from.

        Without `resume` what an earlier fit left is removed. `FitError` is raised where another process fits into this
        folder now, and with `resume` where the earlier fit had other options or images, naming what differs.
        """
        file = self.path / "fit.json"
        found = False
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take()
            if resume and file.exists():
                self._compare(json.loads(file.read_text(encoding="utf-8")))
                found = True
            else:
                for left in self.path.iterdir():
                    if left.name != LOCK:
                        shutil.rmtree(left) if left.is_dir() else left.unlink()
                self._write_json(file, self.identity)
        except OSError as error:
            raise FitError(f"{self.path}: cannot keep the fit's state here: {error.strerror or error}") from error
        except ValueError as error:
            raise FitError(f"{file}: damaged; start again without --resume") from error
        return found

    def _take(self) -> None:
        """Locks the folder for this process; the lock goes with the process, however it ends."""
        if self._lock is not None:
            return
        handle = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(handle)
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise
            raise FitError(f"{self.path}: another process is fitting this bundle now; let it end first") from error
        self._lock = handle

    def _compare(self, earlier: Any) -> None:
        if not isinstance(earlier, dict):
            raise FitError(f"{self.path}: damaged; start again without --resume")
        changed = sorted(
            key for key in {*earlier, *self.identity} if earlier.get(key, "absent") != self.identity.get(key, "absent")
        )
        if changed:
            listed = ", ".join(
                f"{key} was {earlier.get(key, 'absent')}, is {self.identity.get(key, 'absent')}" for key in changed
            )
            raise FitError(
                f"{self.path}: the interrupted fit was another one ({listed}); give the same options and images, or "
                "start again without --resume"
            )

    def save(self, name: str, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Stores tensors and JSON values under `name`, replacing what was there in one step."""
        part = self.path / f".{name}.part"
        try:
            save_file(
                {key: tensor.contiguous() for key, tensor in tensors.items()}, part, {"values": json.dumps(values)}
            )
            _sync(part)
            part.replace(self.path / f"{name}.safetensors")
        except (OSError, safetensors.SafetensorError) as error:
            raise FitError(f"{self.path}: cannot write the fit's state: {error}") from error

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """What was stored under `name`, or None. Raises `FitError` where the file is damaged."""
        file = self.path / f"{name}.safetensors"
        if not file.exists():
            return None
        try:
            with safetensors.safe_open(file, framework="pt") as opened:
                values = json.loads((opened.metadata() or {})["values"])
            return load_file(file), values
        except (OSError, safetensors.SafetensorError, ValueError, KeyError) as error:
            raise FitError(f"{file}: damaged ({error}); start again without --resume") from error

    def remove(self) -> None:
        """Removes the folder, once the bundle is written."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _write_json(self, file: Path, values: Mapping[str, Any]) -> None:
        part = file.with_name(f".{file.name}.part")
        part.write_text(json.dumps(values, indent=1), encoding="utf-8")
        _sync(part)
        part.replace(file)


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
