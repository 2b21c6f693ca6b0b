"""GPU, driver, CUDA, TensorRT and torch, and whether they fit together; clocks and power."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from typing import TYPE_CHECKING, Any

from edge.doctor import Finding, Host, fault, ok, warning

if TYPE_CHECKING:
    from edge.settings import Settings

GPU_ENGINES = ("tensorrt", "torch_cuda")
_NEEDED_DRIVER = {13: 580, 12: 525, 11: 450}
"""CUDA's major version -> the oldest driver branch that runs it (NVIDIA's table of minor-version compatibility)."""
_FIELDS = (
    "name,driver_version,compute_cap,memory.total,clocks.sm,clocks.max.sm,power.limit,power.default_limit,"
    "persistence_mode,temperature.gpu,clocks_throttle_reasons.hw_thermal_slowdown"
)
_HOT_C = 85.0
_JETSON_GPUS = ("gpu", "gp10b", "gv11b", "ga10b", "gb10b")  # how the kernels of the JetPacks name the GPU
_TORCH = """
import json, torch
gpu = torch.cuda.is_available()
print(json.dumps({"version": torch.__version__, "cuda": torch.version.cuda, "gpu": gpu,
    "built_for": torch.cuda.get_arch_list() if gpu else [],
    "sm": "".join(map(str, torch.cuda.get_device_capability())) if gpu else None}))
"""


@dataclass(frozen=True)
class Card:
    """One line of nvidia-smi; what it does not know is "[N/A]" or the like."""

    name: str
    driver: str
    capability: str
    memory_mib: str
    clock_mhz: str
    clock_max_mhz: str
    power_w: str
    power_default_w: str
    persistence: str
    temperature_c: str
    slowed_by_heat: str

    @property
    def sm(self) -> int | None:
        """86 for compute capability 8.6."""
        digits = self.capability.replace(".", "")
        return int(digits) if digits.isdigit() else None


def cards(host: Host) -> list[Card]:
    """The GPUs that nvidia-smi lists."""
    text = host.tool("nvidia-smi", f"--query-gpu={_FIELDS}", "--format=csv,noheader,nounits") or ""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.strip()]
    return [Card(*row) for row in rows if len(row) == len(_FIELDS.split(","))]


def gpu(host: Host, settings: Settings | None) -> Iterator[Finding]:
    """Is there a GPU, and does its driver run?"""
    jetson = host.read("/proc/device-tree/model") if host.path("/etc/nv_tegra_release").exists() else None
    found = cards(host)
    for card in found:
        yield ok("GPU", f"{card.name}, SM{card.sm or '?'}, {card.memory_mib} MiB, driver {card.driver}")
    if jetson:
        yield ok("GPU", f"{jetson}, {(host.read('/etc/nv_tegra_release') or '').partition(',')[0].lstrip('# ')}")
    if found or jetson:
        return
    if _on_the_bus(host):
        yield fault(
            "GPU",
            "an NVIDIA GPU is on the bus, and its driver does not answer",
            "install or reload NVIDIA's driver (`nvidia-smi` must list the GPU), then restart",
        )
    elif settings is not None and set(settings.inference.engines) <= set(GPU_ENGINES):
        yield fault(
            "GPU",
            f"none, and the line allows only engines {', '.join(settings.inference.engines)}",
            'add "openvino" to inference.engines, or run inference on a computer with a GPU (inference.endpoint)',
        )
    else:
        yield ok("GPU", "none; engines openvino and torch judge on the CPU")


def torch_and_cuda(host: Host, settings: Settings | None) -> Iterator[Finding]:
    """Does torch use the GPU, and is it built for it?"""
    told = torch_facts()
    if "error" in told:
        yield fault("torch", f"cannot be imported: {told['error']}", "pip install torch (see README)")
        return
    version, cuda = told["version"], told["cuda"]
    found = cards(host)
    if cuda is None:
        text = f"{version}, built without CUDA"
        if found:
            yield warning("torch", f"{text}, and there is a {found[0].name}", "install the CUDA build of torch")
        else:
            yield ok("torch", text)
        return
    driver = _number(found[0].driver.partition(".")[0]) if found else None
    needed = _NEEDED_DRIVER.get(int(str(cuda).partition(".")[0]))
    if driver is not None and needed is not None and driver < needed:
        yield fault(
            "torch",
            f"{version} is built for CUDA {cuda}, which needs driver {needed} or newer; this is {found[0].driver}",
            f"update NVIDIA's driver to {needed} or newer, or install torch for an older CUDA",
        )
    elif not told["gpu"]:
        text = f"{version} with CUDA {cuda} sees no GPU"
        if found:
            yield fault("torch", text, "check CUDA_VISIBLE_DEVICES, and in a container start it with --gpus all")
        else:
            yield ok("torch", text)
    elif told["built_for"] and not _covers(told["built_for"], int(told["sm"])):
        yield fault(
            "torch",
            f"{version} holds kernels for {', '.join(told['built_for'])}, the GPU is sm_{told['sm']}",
            "install a torch built for this GPU (on Jetson: NVIDIA's wheel for this JetPack)",
        )
    else:
        yield ok("torch", f"{version}, CUDA {cuda}, runs on the GPU")


def tensorrt(host: Host, settings: Settings | None) -> Iterator[Finding]:
    """Is TensorRT there, of the right kind for the GPU, and does torch-tensorrt belong to this torch?"""
    from pipelines.engines.tensorrt_process import PLAIN, RTX, installed_library
    from pipelines.errors import EngineError

    found = cards(host)
    wanted = settings is not None and "tensorrt" in settings.inference.engines
    try:
        library = installed_library()
    except EngineError as error:
        if wanted or found:
            yield warning("TensorRT", "not installed", str(error).partition("; ")[2])
        else:
            yield ok("TensorRT", "not installed, and there is no GPU to use it")
        return
    data_centre = {90, 100, 103}
    if found and library.startswith(RTX) and found[0].sm in data_centre:
        fix = "pip install 'edge-inspect[tensorrt]' instead of [rtx]"
        yield warning("TensorRT", f"{library} is for RTX GPUs, and this is a {found[0].name}", fix)
    elif found and library.startswith(PLAIN + " ") and _number(library.split()[1].partition(".")[0]) == 8:
        fix = "update JetPack, or build by `edge bundle export --onnx` and trtexec"
        yield warning("TensorRT", f"{library} is older than engines are built for here", fix)
    else:
        yield ok("TensorRT", library)
    yield from _torch_tensorrt()


def _torch_tensorrt() -> Iterator[Finding]:
    for name in ("torch-tensorrt-rtx", "torch-tensorrt"):
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
        torch = metadata.version("torch")
        if version.split(".")[:2] != torch.split(".")[:2]:
            yield fault(
                "torch-tensorrt",
                f"{name} {version} is made for torch {'.'.join(version.split('.')[:2])}, this is {torch}",
                f"pip install '{name}=={'.'.join(torch.split('+')[0].split('.')[:2])}.*', or build with another Python "
                "(EDGE_INSPECT_TENSORRT_PYTHON)",
            )
        else:
            yield ok("torch-tensorrt", f"{name} {version} belongs to torch {torch}")
        return


def clocks_and_power(host: Host, settings: Settings | None) -> Iterator[Finding]:
    """Does something slow the GPU down, or let it fall asleep?"""
    for card in cards(host):
        power, usual = _number(card.power_w), _number(card.power_default_w)
        if power is not None and usual is not None and power < 0.95 * usual:
            fix = f"as root, `nvidia-smi -pl {usual:.0f}`"
            yield warning("GPU power", f"{card.name} is limited to {power:.0f} W of its usual {usual:.0f} W", fix)
        temperature = _number(card.temperature_c)
        if card.slowed_by_heat == "Active" or (temperature is not None and temperature >= _HOT_C):
            yield warning("GPU heat", f"{card.name} is at {card.temperature_c} C and slows down", "improve its cooling")
        if card.persistence == "Disabled":
            text = f"{card.name}: the driver unloads between programs, so the first frame waits for it"
            yield warning("GPU clocks", text, "as root, `nvidia-smi -pm 1`, or enable nvidia-persistenced")
        else:
            yield ok("GPU clocks", f"{card.clock_mhz} of {card.clock_max_mhz} MHz now")
    if host.path("/etc/nv_tegra_release").exists():
        yield from _jetson_power(host)


def _jetson_power(host: Host) -> Iterator[Finding]:
    mode = host.tool("nvpmodel", "-q") or host.read("/var/lib/nvpmodel/status")
    fix = "as root, `nvpmodel -m 0` and `jetson_clocks` (the numbers of modes differ: `nvpmodel -p --verbose`)"
    if mode is None:
        yield warning("Jetson power mode", "nvpmodel does not say", fix)
    elif "MAXN" in mode or mode.strip().endswith((":0000", "\n0")):
        yield ok("Jetson power mode", " ".join(mode.split()))
    else:
        yield warning("Jetson power mode", f"{' '.join(mode.split())}: not the fastest", fix)
    for folder in host.glob("/sys/class/devfreq/*"):
        if not folder.name.endswith(_JETSON_GPUS):
            continue
        low, high = (host.read(f"/sys/class/devfreq/{folder.name}/{name}_freq") for name in ("min", "max"))
        if low != high:
            yield warning(
                "Jetson clocks", f"the GPU's clock may fall to {low} of {high} Hz", "as root, `jetson_clocks`"
            )
        else:
            yield ok("Jetson clocks", f"fixed at {high} Hz")


@lru_cache(maxsize=1)
def torch_facts() -> dict[str, Any]:
    """Versions and CUDA of torch, asked in a process of its own: a broken CUDA can end the one that imports it."""
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TORCH], capture_output=True, text=True, timeout=120, check=False, errors="replace"
        )
    except subprocess.TimeoutExpired:
        return {"error": "it did not answer within two minutes"}
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        return {"error": lines[-1][:200] if lines else f"it ended with code {done.returncode}"}
    facts: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return facts


def _on_the_bus(host: Host) -> bool:
    """Whether a display controller of NVIDIA's is on the PCI bus."""
    return any(
        host.read(f"/sys/bus/pci/devices/{device.name}/vendor") == "0x10de"
        and (host.read(f"/sys/bus/pci/devices/{device.name}/class") or "").startswith("0x03")
        for device in host.glob("/sys/bus/pci/devices/*")
    )


def _covers(built_for: list[str], sm: int) -> bool:
    """Whether a GPU runs kernels of one of these: of its own generation and not newer, or compiled from PTX."""
    for name in built_for:
        kind, _, number = name.partition("_")
        built = _number("".join(c for c in number if c.isdigit()))
        if built is not None and (built <= sm if kind == "compute" else built // 10 == sm // 10 and built <= sm):
            return True
    return False


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


CHECKS = (gpu, torch_and_cuda, tensorrt, clocks_and_power)
