"""The GPU that engines run on: what it is, and a clear reason where there is none."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines.errors import EngineError

_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Gpu:
    """One CUDA device."""

    name: str
    sm: int
    """Compute capability, 86 for 8.6."""
    driver: str
    """Version of the kernel driver, "unknown" where the system does not say."""
    memory_bytes: int

    def __str__(self) -> str:
        return f"{self.name} (SM{self.sm})"


def require_gpu(engine: str) -> Gpu:
    """The first CUDA device. Raises `EngineError` that says what is missing: the device, the driver or CUDA torch."""
    if torch.version.cuda is None:
        raise EngineError(
            f"engine {engine} needs CUDA, and this torch ({torch.__version__}) is built without; install the CUDA "
            "build of torch, or take engine openvino or torch"
        )
    if not torch.cuda.is_available():
        why = "no NVIDIA driver is loaded" if not _DRIVER.exists() else "the driver shows this process no device"
        raise EngineError(
            f"engine {engine} needs a GPU: {why}; `edge doctor` says what fits together, engines openvino and torch "
            "need none"
        )
    properties = torch.cuda.get_device_properties(0)
    return Gpu(properties.name, properties.major * 10 + properties.minor, driver_version(), properties.total_memory)


def driver_version() -> str:
    """Version of NVIDIA's kernel driver."""
    try:
        text = _DRIVER.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "unknown"
    found = re.search(r"Kernel Module.*?\s(\d+\.\d+(?:\.\d+)?)\s", text)
    return found[1] if found else "unknown"
