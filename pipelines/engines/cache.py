"""Where built engines are kept.

    <root>/<key name>/
        key.json        the key, and the sha256 of every other file
        ...             the engine's own files

The root is `EDGE_ENGINE_CACHE`/<bundle id>, else `engines/` in the bundle, else (bundle read-only) the user's cache
folder. An entry appears in one step and is checked whenever it is used; a damaged one is built again, with a warning.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import platformdirs

from pipelines.bundle import Bundle
from pipelines.engines.base import EngineKey
from pipelines.errors import EngineError
from pipelines.storage import new_folder, sha256_file

KEY = "key.json"
_log = logging.getLogger("pipelines.engines")


def roots(bundle: Bundle) -> list[Path]:
    """Where to look for engines of `bundle`, in order; the first writable one gets new ones."""
    override = os.environ.get("EDGE_ENGINE_CACHE")
    if override:
        return [Path(override) / bundle.id[:16]]
    return [bundle.path / "engines", platformdirs.user_cache_path("edge-inspect") / "engines" / bundle.id[:16]]


def find(bundle: Bundle, key: EngineKey) -> Path | None:
    """The folder of a built engine whose files are intact, or None. Damaged entries are removed with a warning."""
    for root in roots(bundle):
        folder = root / key.name
        if not folder.is_dir():
            continue
        fault = _fault(folder, key)
        if fault is None:
            return folder
        _log.warning("engine cache %s is damaged (%s); it is built again", folder, fault)
        shutil.rmtree(folder, ignore_errors=True)
    return None


def find_other(bundle: Bundle, serves: Callable[[EngineKey], bool]) -> tuple[Path, EngineKey] | None:
    """The folder and key of an intact engine whose key `serves`, or None."""
    for root in roots(bundle):
        for file in sorted(root.glob(f"*/{KEY}")):
            try:
                key = EngineKey(**json.loads(file.read_text(encoding="utf-8"))["key"])
            except (OSError, ValueError, KeyError, TypeError):
                continue  # `find` removes damaged entries, when they are asked for
            if serves(key) and _fault(file.parent, key) is None:
                return file.parent, key
    return None


def store(bundle: Bundle, key: EngineKey, build: Callable[[Path], None]) -> Path:
    """Runs `build(folder)` on a temporary folder and makes it the entry of `key`. Raises `EngineError`."""
    for root in roots(bundle):
        if _writable(root):
            break
    else:
        raise EngineError(
            f"{' and '.join(map(str, roots(bundle)))} cannot be written, so no engine can be kept; "
            "set EDGE_ENGINE_CACHE to a folder that this user may write"
        )
    folder = root / key.name
    if folder.exists():
        # Damaged, and not removable as a whole by `find`; or finished by another process a moment ago.
        if _fault(folder, key) is None:
            return folder
        raise EngineError(f"{folder}: this engine cache is damaged and cannot be removed; remove it by hand")
    try:
        with new_folder(folder, EngineError, "an engine") as temporary:
            build(temporary)
            files = {file.name: sha256_file(file) for file in sorted(temporary.iterdir())}
            text = json.dumps({"key": asdict(key), "files": files}, indent=1)
            (temporary / KEY).write_text(text + "\n", encoding="utf-8")
    except EngineError:
        if folder.is_dir() and _fault(folder, key) is None:  # another process built the same one meanwhile
            return folder
        raise
    return folder


def _fault(folder: Path, key: EngineKey) -> str | None:
    """What is wrong with an entry, in words, or None."""
    try:
        entry = json.loads((folder / KEY).read_text(encoding="utf-8"))
        if entry["key"] != asdict(key):
            return f"{KEY} is of another engine"
        files: dict[str, str] = dict(entry["files"])
        if not files or any(Path(name).name != name for name in files):
            return f"{KEY} names no files"
        for name, digest in files.items():
            if sha256_file(folder / name) != digest:
                return f"{name} differs from what was built"
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, RecursionError):
        return f"{KEY} does not parse"
    return None


def _writable(root: Path) -> bool:
    """Whether a folder can be made below `root` (which may not exist yet)."""
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(root, os.W_OK | os.X_OK)
