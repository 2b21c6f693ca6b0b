"""What this processor is and can do, from /proc/cpuinfo."""

from __future__ import annotations

import platform
from pathlib import Path


def _cpuinfo() -> dict[str, str]:
    """The first processor's fields; empty where the file cannot be read."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n", 1)[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def cpu_model() -> str:
    """Model name, family and stepping: names of virtual machines alone are too vague to tell processors apart."""
    info = _cpuinfo()
    name = info.get("model name") or info.get("Model") or platform.processor() or platform.machine()
    numbers = "/".join(info[key] for key in ("cpu family", "model", "stepping") if key in info)
    return f"{name} {numbers}".strip()


def fast_bfloat16() -> bool:
    """Whether bfloat16 matrix products are faster than float32 ones here.

    They are with Intel's matrix units (AMX) and on AMD processors with AVX512-BF16. Intel's AVX512-BF16 without AMX has
    half the issue rate of float32 products, so bfloat16 gains nothing there (measured: 1.5 to 1.9 times slower).
    """
    info = _cpuinfo()
    flags = set(info.get("flags", "").split())
    return "amx_bf16" in flags or ("avx512_bf16" in flags and info.get("vendor_id") == "AuthenticAMD")
