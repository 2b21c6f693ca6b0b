"""From a traced graph to a serialized TensorRT engine, by torch-tensorrt's converters. Runs in `tensorrt_worker` only.

One code path for TensorRT and TensorRT-RTX: torch-tensorrt partitions and lowers the graph (a dry run, so that nothing
needs a GPU), its interpreter writes the network, and the builder is driven from here, because only so can it report
progress, aim at a named GPU, tune for two ranges of batch, and keep its log of kernels.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from pipelines.engines.base import Progress
from pipelines.engines.tensorrt_graph import INPUT, OUTPUTS
from pipelines.engines.tensorrt_targets import DEFAULT_TARGET, Batch
from pipelines.engines.tensorrt_watch import CONVERTED, BuilderLog, Clock, monitor
from pipelines.errors import EngineError

_FUSED_ATTENTION = "_gemm_mha"


@dataclass
class BuildReport:
    """What was built, for people and tests; kept beside the engine."""

    target: str
    library: str
    batch: str
    operators: int  # of the graph, all of them converted
    engines: int  # parts the graph was cut into
    layers: int  # of the network before optimisation
    kernels: int  # of all profiles
    fused_attention: int  # kernels that hold a whole attention, per profile
    plan_bytes: int
    seconds: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def checked(function: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """`options`, if `function` names every one of them: torch-tensorrt swallows what it does not know.

    Raises `EngineError` that names the option.
    """
    known = inspect.signature(function).parameters
    for name in options:
        if name not in known or known[name].kind is inspect.Parameter.VAR_KEYWORD:
            raise EngineError(f"torch-tensorrt {_version()} has no option {name!r}, and would ignore it without a word")
    return dict(options)


class Converted:
    """A network, ready to be built for any number of targets. Made by `convert`."""

    def __init__(
        self,
        interpreter: Any,
        batch: Batch,
        pixel_shape: tuple[int, int, int],
        operators: int,
        log: BuilderLog,
        clock: Clock,
    ) -> None:
        self._interpreter = interpreter
        self._batch = batch
        self._pixel_shape = pixel_shape
        self._operators = operators
        self._log = log
        self._clock = clock

    def build(self, target: str | None, timing_cache: Path | None, progress: Progress) -> tuple[bytes, BuildReport]:
        """The engine for a named `target`, or (None) for the GPU of this machine. Raises `EngineError`."""
        log, network = self._log, self._interpreter.ctx.net
        log.clear()
        config = _config(self._interpreter, self._batch, target, self._pixel_shape)
        _use_timing_cache(config, timing_cache)
        config.progress_monitor = monitor(progress)
        progress("build the engine", CONVERTED)
        self._clock.skip()
        plan = self._interpreter.builder.build_serialized_network(network, config)
        if plan is None:
            reasons = " | ".join(log.errors[-3:]) or "it gave no reason"
            raise EngineError(f"TensorRT cannot build this engine: {reasons[:600]}")
        self._clock.lap("build")
        _keep_timing_cache(config, timing_cache)
        report = BuildReport(
            target=target or "this GPU",
            library=library(),
            batch=str(self._batch),
            operators=self._operators,
            engines=1,
            layers=network.num_layers,
            kernels=len(log.kernels),
            fused_attention=sum(_FUSED_ATTENTION in name for name in log.kernels) // len(self._batch.profiles),
            plan_bytes=plan.nbytes,
            seconds=dict(self._clock.laps),
            warnings=log.warnings[:20],
        )
        return bytes(plan), report


def convert(
    program: torch.export.ExportedProgram, batch: Batch, progress: Progress, pixel_shape: tuple[int, int, int]
) -> Converted:
    """The network for frames uint8 [batch, *pixel_shape].

    Raises `EngineError` where an operator has no converter or the graph does not fit in one engine.
    """
    clock, log = Clock(), BuilderLog()
    progress("convert the graph", 0.05)
    module, inputs, operators = _partition(program, _input(batch, pixel_shape))
    clock.lap("partition")
    interpreter = _interpreter(module, inputs, log.make())
    with _quiet(), _words("TensorRT's converters"):
        interpreter._construct_trt_network_def()
    _name(interpreter.ctx.net)
    clock.lap("network")
    return Converted(interpreter, batch, pixel_shape, operators, log, clock)


def library() -> str:
    """ "tensorrt_rtx 1.5.0.114" or "tensorrt 11.0.0.1": what engines are built with here."""
    import tensorrt
    import torch_tensorrt  # noqa: F401 - it decides which of the two `tensorrt` means

    return f"{getattr(tensorrt, '_package_name', '') or 'tensorrt'} {tensorrt.__version__}"


def _version() -> str:
    import torch_tensorrt

    return str(torch_tensorrt.__version__)


def _input(batch: Batch, pixel_shape: tuple[int, int, int]) -> Any:
    from torch_tensorrt import Input

    if not batch.dynamic:
        return Input(shape=(batch.low, *pixel_shape), dtype=torch.uint8, name=INPUT)
    low, high = (batch.low, *pixel_shape), (batch.high, *pixel_shape)
    return Input(min_shape=low, opt_shape=high, max_shape=high, dtype=torch.uint8, name=INPUT)


def _partition(program: torch.export.ExportedProgram, spec: Any) -> tuple[Any, Any, int]:
    """The lowered graph as one module, its inputs, and how many operators it has."""
    import torch_tensorrt
    from torch_tensorrt.dynamo.partitioning import construct_submodule_inputs

    options = checked(
        torch_tensorrt.dynamo.compile,
        {"inputs": [spec], "dryrun": True, "min_block_size": 1, "require_full_compilation": True},
    )
    with _quiet(), _words("torch-tensorrt"):
        try:
            whole = torch_tensorrt.dynamo.compile(program, **options)
        except Exception as error:
            if "require_full_compilation" not in str(error):
                raise
            names = ", ".join(_without_converter(program)[:8]) or "some operators"  # it does not say which
            raise EngineError(
                f"TensorRT has no converter for {names}; use engine torch_cuda, or a head without"
            ) from error
    parts = [module for _, module in whole.named_children()]
    outside = _left_to_torch(whole)
    if len(parts) != 1 or outside:
        names = ", ".join(outside) or "none"
        raise EngineError(
            f"the graph does not fit in one TensorRT engine: {len(parts)} parts, operators left to torch: {names}; "
            "use engine torch_cuda"
        )
    operators = sum(node.op == "call_function" for node in parts[0].graph.nodes)
    return parts[0], construct_submodule_inputs(parts[0]), operators


def _left_to_torch(whole: Any) -> list[str]:
    """Names of the operators outside the TensorRT parts of a partitioned graph."""
    graphs = [whole.graph, *(part.graph for name, part in whole.named_children() if "_run_on_acc" not in name)]
    nodes = [node for graph in graphs for node in graph.nodes if node.op == "call_function"]
    return sorted({str(node.target) for node in nodes if "getitem" not in str(node.target)})


def _without_converter(program: torch.export.ExportedProgram) -> list[str]:
    """Names of the operators of a traced graph, decomposed as torch-tensorrt does it, that it cannot convert."""
    from torch_tensorrt.dynamo.conversion import DYNAMO_CONVERTERS
    from torch_tensorrt.dynamo.lowering import get_decompositions

    nodes = program.run_decompositions(get_decompositions()).graph.nodes
    calls = [node for node in nodes if node.op == "call_function" and "getitem" not in str(node.target)]
    return sorted({str(node.target) for node in calls if DYNAMO_CONVERTERS.get(node) is None})


def _interpreter(module: Any, inputs: Any, logger: Any) -> Any:
    from torch_tensorrt.dynamo._settings import CompilationSettings
    from torch_tensorrt.dynamo.conversion import _TRTInterpreter

    # TF32 off: it would round the float32 islands, made so because rounding hurts there, to 10 bits.
    settings = checked(
        CompilationSettings, {"min_block_size": 1, "require_full_compilation": True, "disable_tf32": True}
    )
    _TRTInterpreter.TRT_LOGGER = logger
    with _quiet():
        interpreter = _TRTInterpreter.TRTInterpreter(
            module, inputs, compilation_settings=CompilationSettings(**settings)
        )
    missing = sorted(interpreter.validate_conversion())
    if missing:
        raise EngineError(
            f"TensorRT has no converter for {', '.join(missing)}; use engine torch_cuda, or a head without it"
        )
    return interpreter


def _name(network: Any) -> None:
    if network.num_inputs != 1 or network.num_outputs != len(OUTPUTS):
        raise EngineError(f"the network has {network.num_inputs} inputs and {network.num_outputs} outputs, not 1 and 2")
    network.get_input(0).name = INPUT
    for index, name in enumerate(OUTPUTS):
        network.get_output(index).name = name


def _config(interpreter: Any, batch: Batch, target: str | None, pixel_shape: tuple[int, int, int]) -> Any:
    import tensorrt

    interpreter.optimization_profiles = None  # torch-tensorrt knows one range, we tune for two
    config = interpreter._populate_trt_builder_config()
    config.profiling_verbosity = tensorrt.ProfilingVerbosity.DETAILED
    if batch.dynamic:
        for low, high in batch.profiles:
            profile = interpreter.builder.create_optimization_profile()
            profile.set_shape(INPUT, (low, *pixel_shape), (high, *pixel_shape), (high, *pixel_shape))
            config.add_optimization_profile(profile)
    if target is not None and target != DEFAULT_TARGET:
        config.num_compute_capabilities = 1
        config.set_compute_capability(getattr(tensorrt.ComputeCapability, target.upper()), 0)
    return config


def _use_timing_cache(config: Any, path: Path | None) -> None:
    """What earlier builds measured on this GPU. TensorRT-RTX measures nothing while it builds, so it has none."""
    if path is None or library().startswith("tensorrt_rtx"):
        return
    content = path.read_bytes() if path.is_file() else b""
    config.set_timing_cache(config.create_timing_cache(content), False)


def _keep_timing_cache(config: Any, path: Path | None) -> None:
    if path is None or library().startswith("tensorrt_rtx"):
        return
    temporary = path.with_name(f".{path.name}.part")
    with contextlib.suppress(OSError):  # only a matter of speed
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
        temporary.replace(path)


@contextlib.contextmanager
def _words(what: str) -> Any:
    """A library's exception as one line of ours."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        words = str(error).strip().split("\n\n")[0]
        raise EngineError(f"{what} cannot convert this pipeline: {' '.join(words.split())[:500]}") from error


@contextlib.contextmanager
def _quiet() -> Any:
    """Keeps the library's report of its dry run and its warnings from the user's screen."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
