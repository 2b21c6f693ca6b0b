"""Engines by name, and how one is prepared: found or built, loaded, and passed through the parity gate."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.numpy

from pipelines.bundle import Bundle, Reference, expected, pack_reference, unpack_reference
from pipelines.engines import cache
from pipelines.engines.base import Engine, EngineKey, EngineOptions, Progress
from pipelines.engines.frame import FrameSpec, adapt, convert
from pipelines.errors import EngineError, InspectError
from pipelines.parity import ParityReport, check

ENGINES = {
    "openvino": "pipelines.engines.openvino:OpenVinoEngine",
    "torch": "pipelines.engines.torch:TorchEngine",
    "tensorrt": "pipelines.engines.tensorrt:TensorRtEngine",
    "torch_cuda": "pipelines.engines.torch_cuda:TorchCudaEngine",
}
"""Name -> module:class. Modules are imported when their engine is asked for, so a missing library harms nobody else."""

DEFAULT_ORDER = ("openvino", "torch")
_CONVERTED = "reference.safetensors"  # in the cache entry of an engine for another camera's frames

_log = logging.getLogger("pipelines.engines")

OnRefused = Callable[[str, str], None]
"""on_refused(engine, why) is called for each engine that may not judge."""


@dataclass(frozen=True)
class Prepared:
    """A loaded engine and what the gate found; `require()` of the report has not been called."""

    engine: Engine
    report: ParityReport
    folder: Path | None  # None where the engine needs no build
    built: bool  # now, rather than found


def engine_class(name: str) -> type[Engine]:
    """The class of an engine. Raises `EngineError` where the name is unknown or a library is missing."""
    if name not in ENGINES:
        raise EngineError(f"there is no engine {name!r}; choose from {', '.join(ENGINES)}")
    module, _, attribute = ENGINES[name].partition(":")
    try:
        found: type[Engine] = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise EngineError(f"engine {name}: {error}; pip install 'edge-inspect[{name}]'") from error
    return found


def prepare(
    bundle: Bundle,
    name: str,
    *,
    frame: FrameSpec | None = None,
    options: EngineOptions | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Finds or builds engine `name`, loads it and runs the reference frames through it.

    With precision "auto" a faster precision that does not pass the gate gives way to the next one of the same engine.
    Raises `EngineError` where it cannot be built, loaded or run; whether it may judge is the report's to say.
    """
    options = options or EngineOptions()
    kind = engine_class(name)
    if options.precision != "auto" and options.precision not in kind.supported:
        raise EngineError(
            f"engine {name} computes in {' or '.join(kind.supported)}, not {options.precision}; choose one or auto"
        )
    precisions = kind.auto_precisions() if options.precision == "auto" else (options.precision,)
    for precision in precisions[:-1]:
        prepared = _prepare(bundle, kind, precision, frame, options, progress or _silent)
        if prepared.report.passed:
            return prepared
        prepared.engine.close()
        _log.warning("engine %s in %s does not pass the parity gate; trying the next precision", name, precision)
    return _prepare(bundle, kind, precisions[-1], frame, options, progress or _silent)


def _prepare(
    bundle: Bundle,
    kind: type[Engine],
    precision: str,
    frame: FrameSpec | None,
    options: EngineOptions,
    progress: Progress,
) -> Prepared:
    config = adapt(bundle.config, frame)
    key = kind.make_key(bundle, config, precision, options)
    folder, built = None, False
    if kind.built:
        folder = cache.find(bundle, key)
        if folder is None and options.batch is None:
            other = cache.find_other(bundle, lambda built: kind.serves(built, key))
            folder, key = other or (None, key)
        if folder is None:
            folder, built = _build(bundle, kind, key, frame, progress), True
    progress("load the engine", 1.0)
    engine = kind.open(bundle, config, key, folder, options)
    try:
        progress("check the reference frames", 1.0)
        report = check(engine, reference_for(bundle, frame, folder), bundle.limit)
    except BaseException:
        engine.close()
        raise
    return Prepared(engine, report, folder, built)


def load(
    bundle: Bundle,
    order: Sequence[str] = DEFAULT_ORDER,
    frame: FrameSpec | None = None,
    on_refused: OnRefused | None = None,
    *,
    options: EngineOptions | None = None,
    progress: Progress | None = None,
) -> Engine:
    """The first engine of `order` that loads and reproduces the bundle's reference scores.

    `frame` is the camera's pixel format and size where they are not the bundle's own (see `pipelines.engines.frame`).
    An engine that was never built for this machine is built here; `edge bundle build` does it ahead of time. Each
    refusal is told to `on_refused`. Raises `EngineError` with every reason where all are refused.
    """
    if not order:
        raise EngineError(f"no engine is configured; choose from {', '.join(ENGINES)}")
    refused: list[str] = []
    for name in order:
        try:
            prepared = prepare(bundle, name, frame=frame, options=options, progress=progress)
            try:
                prepared.report.require()
            except InspectError:
                prepared.engine.close()
                raise
            return prepared.engine
        except InspectError as error:
            reason = str(error)
        except Exception as error:  # a library's own failure must not keep the next engine from judging
            reason = f"engine {name} failed: {type(error).__name__}: {' '.join(str(error).split())[:400]}"
        refused.append(f"{name}: {reason}")
        if on_refused is not None:
            on_refused(name, reason)
    raise EngineError(f"{bundle.path}: no engine may judge parts. " + " | ".join(refused))


def build(
    bundle: Bundle,
    engine: str,
    progress: Progress | None = None,
    *,
    frame: FrameSpec | None = None,
    options: EngineOptions | None = None,
) -> Path:
    """Builds an engine ahead of time and proves it; returns its folder in the cache.

    Raises `EngineError` where it cannot be built or needs no build, `ParityError` where it may not judge.
    """
    prepared = prepare(bundle, engine, frame=frame, options=options, progress=progress)
    prepared.engine.close()
    prepared.report.require()
    if prepared.folder is None:
        raise EngineError(f"engine {engine} needs no build: it runs the bundle as it is")
    return prepared.folder


def _build(bundle: Bundle, kind: type[Engine], key: EngineKey, frame: FrameSpec | None, progress: Progress) -> Path:
    config = adapt(bundle.config, frame)

    def write(folder: Path) -> None:
        kind.build(bundle, config, key, folder, progress)
        write_converted_reference(bundle, frame, folder)

    return cache.store(bundle, key, write)


def write_converted_reference(bundle: Bundle, frame: FrameSpec | None, folder: Path) -> None:
    """Keeps, beside an engine for another camera's frames, what it must reproduce."""
    if adapt(bundle.config, frame) != bundle.config:
        reference = converted_reference(bundle, frame)
        safetensors.numpy.save_file(pack_reference(reference), folder / _CONVERTED)


def reference_for(bundle: Bundle, frame: FrameSpec | None, folder: Path | None = None) -> Reference:
    """What an engine for `frame` must reproduce: stored in the bundle, for other frames in the engine's `folder`.

    Without a folder the torch pipeline computes it.
    """
    if adapt(bundle.config, frame) == bundle.config:
        return bundle.reference()
    if folder is None:
        return converted_reference(bundle, frame)
    file = folder / _CONVERTED
    try:
        tensors = safetensors.numpy.load_file(file)
    except (OSError, safetensors.SafetensorError) as error:
        raise EngineError(f"{file}: cannot be read ({error}); remove {folder} to build the engine again") from error
    return unpack_reference(tensors, bundle.manifest.references, len(bundle.limit.regions), str(file))


def converted_reference(bundle: Bundle, frame: FrameSpec | None) -> Reference:
    """The bundle's reference frames as a camera of `frame` would deliver them, scored by torch in float32."""
    config = adapt(bundle.config, frame)
    target = FrameSpec.of(config)
    frames = [convert(stored, bundle.config.pixel_format, target) for stored in bundle.reference().frames]
    return expected(bundle.pipeline(config), frames)


def _silent(what: str, done: float) -> None:
    """Progress that nobody watches."""
