"""Lets torch-tensorrt be imported, and build, where there is no GPU.

It asks torch for the GPU's properties while it is imported, and loads a runtime library that needs CUDA. The answers
here are stand-ins: the builder takes the real target from its own configuration. They change torch for the whole
process, so only `tensorrt_worker`, a program of its own, installs them.
"""

from __future__ import annotations

import os
import types
from typing import Any

import torch

_MEMORY = 8 << 30


def install() -> None:
    """Replaces what torch-tensorrt asks of CUDA. Refuses to where there is a GPU."""
    if torch.cuda.is_available():
        raise RuntimeError("stand-ins are for machines without GPU")
    properties = types.SimpleNamespace(
        name="no GPU", major=8, minor=6, total_memory=_MEMORY, multi_processor_count=1, is_integrated=0
    )
    cuda: Any = torch.cuda
    cuda.get_device_capability = lambda device=None: (properties.major, properties.minor)
    cuda.get_device_properties = lambda device=None: properties
    cuda.current_device = lambda: 0
    cuda.mem_get_info = lambda device=None: (_MEMORY, _MEMORY)
    internals: Any = torch._C
    if not hasattr(internals, "_CudaDeviceProperties"):
        internals._CudaDeviceProperties = type("_CudaDeviceProperties", (), {})
    found = os.path.isfile
    paths: Any = os.path
    paths.isfile = lambda path: "libtorchtrt" not in os.fspath(path) and found(path)
