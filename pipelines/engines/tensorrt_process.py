"""Builds TensorRT engines in a process of their own, and finds the library. Imports neither torch nor TensorRT.

`EDGE_INSPECT_TENSORRT_PYTHON` may name the Python of another environment to build with: torch-tensorrt wants an exact
version of torch, and a line need not run that one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import platformdirs

from pipelines.engines.base import Progress
from pipelines.engines.tensorrt_worker import Request
from pipelines.errors import EngineError

PYTHON = "EDGE_INSPECT_TENSORRT_PYTHON"
RTX, PLAIN = "tensorrt_rtx", "tensorrt"
MISSING = (
    "engine tensorrt: the library is missing; pip install 'edge-inspect[rtx]' for RTX GPUs, 'edge-inspect[tensorrt]' "
    "for data-centre GPUs and Jetson"
)


def installed_library() -> str:
    """ "tensorrt_rtx 1.5.0.114" or "tensorrt 11.0.0.1" of this Python. Raises `EngineError` where there is neither.

    Where both are installed it is the one that torch-tensorrt uses.
    """
    found = {name: _version(name) for name in (RTX, PLAIN, "torch-tensorrt-rtx")}
    name = RTX if found["torch-tensorrt-rtx"] or not found[PLAIN] else PLAIN
    if not found[name]:
        raise EngineError(MISSING)
    return f"{name} {found[name]}"


def builder_python() -> str:
    """The Python that builds engines. Raises `EngineError` where the variable names none."""
    python = os.environ.get(PYTHON) or sys.executable
    if not os.access(python, os.X_OK):
        raise EngineError(f"{PYTHON}={python}: there is no such program; name the Python that has torch-tensorrt")
    return python


@lru_cache(maxsize=4)
def builder_library(python: str) -> str:
    """`installed_library` of the Python that builds. Raises `EngineError`."""
    if python == sys.executable:
        return installed_library()
    code = (
        "import sys\n"
        "from pipelines.engines.tensorrt_process import installed_library\n"
        "from pipelines.errors import InspectError\n"
        "try: print(installed_library())\n"
        "except InspectError as error: sys.exit(str(error))\n"
    )
    found = subprocess.run([python, "-c", code], capture_output=True, text=True, env=_environment(), check=False)
    if found.returncode:
        raise EngineError(f"{PYTHON}={python}: {_last_line(found.stderr) or 'it does not start'}")
    return found.stdout.strip()


def timing_cache(library: str, device: str) -> Path:
    """Where what a builder measured on this kind of GPU is kept for the next build, beside the engines."""
    root = os.environ.get("EDGE_ENGINE_CACHE")
    folder = Path(root) if root else platformdirs.user_cache_path("edge-inspect") / "engines"
    name = "".join(c if c.isalnum() or c in ".-" else "_" for c in f"timing-{library}-{device}")
    return folder / f"{name}.bin"


def build(request: Request, progress: Progress) -> dict[str, Any]:
    """Runs the builder on `request` and returns its report.

    Raises `EngineError` with the builder's reason, or with the last it said where it died.
    """
    python = builder_python()
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as noise:
        worker = subprocess.Popen(
            [python, "-m", "pipelines.engines.tensorrt_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=noise,
            text=True,
            encoding="utf-8",
            env=_environment(),
        )
        try:
            assert worker.stdin is not None
            assert worker.stdout is not None
            try:
                worker.stdin.write(request.model_dump_json())
                worker.stdin.close()
            except BrokenPipeError:
                pass  # it died at once: why is in the noise
            answer = _listen(worker.stdout, progress)
            code = worker.wait()
        finally:
            if worker.poll() is None:
                worker.kill()
                worker.wait()
            for stream in (worker.stdin, worker.stdout):
                if stream is not None and not stream.closed:
                    stream.close()
        if "done" in answer:
            report: dict[str, Any] = answer["done"]
            return report
        if "error" in answer:
            raise EngineError(answer["error"])
        noise.seek(0)
        raise EngineError(f"the TensorRT builder {_end(code)}: {_last_line(noise.read()) or 'it said nothing'}")


def _listen(stream: IO[str], progress: Progress) -> dict[str, Any]:
    """The last answer that is no progress."""
    final: dict[str, Any] = {}
    for line in stream:
        try:
            answer = json.loads(line)
        except ValueError:
            continue  # a line cut short by the builder's death
        if "progress" in answer:
            what, done = answer["progress"]
            progress(what, done)
        else:
            final = answer
    return final


def _environment() -> dict[str, str]:
    """The builder finds this very project, whichever Python runs it."""
    project = str(Path(__file__).resolve().parents[2])
    others = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([project, *([others] if others else [])])}


def _end(code: int) -> str:
    if code < 0:
        killed = " (out of memory?)" if -code == signal.SIGKILL else ""
        return f"was ended by {signal.Signals(-code).name}{killed}"
    return f"ended with code {code}"


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1][:400] if lines else ""


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
