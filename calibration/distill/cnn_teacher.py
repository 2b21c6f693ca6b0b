"""A convolutional teacher in any form that OpenVINO reads, tapped in its interior.

A cell of a convolutional map does not look at the centre of its square of pixels: convolutions of stride 2 that are
padded at the end only (TensorFlow) centre cell i of total stride s at pixel s*i + s - 1/2, symmetrically padded ones
(PyTorch) at s*i + 1/2, and what a trained network weighs most lies somewhere between. So the centre of each tap is
measured once on the network itself - where a small change of the picture moves a cell most - and the tap sees a view
of the image that is shifted by the difference, in whole pixels, the border reflected. Then cell i lines up with the
patches it covers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.distill.teachers import Tap
from calibration.errors import FitError
from pipelines.encoders.config import IMAGENET_MEAN, IMAGENET_STD

DEFAULT_STRIDES = (8, 16, 32)
KEPT_SHAPES = 12
"""Compiled sizes kept per tap."""

_MEASURED_SIDE, _MEASURED_PICTURES = 256, 4


class CnnTeacher:
    """See the module. Input uint8 takes pixels as they are, float input takes them normalised as for ImageNet."""

    def __init__(self, file: Path, taps: Sequence[str] = (), threads: int = 1) -> None:
        """`taps`: names of interior outputs or operations; by default the last residual sum of strides 8, 16 and 32.

        Raises `FitError` where OpenVINO is absent or cannot read the file, the network takes no RGB image of variable
        size, or a tap is not there or not a map of features.
        """
        try:
            import openvino
        except ImportError:
            raise FitError(f"--teacher {file}: needs OpenVINO: pip install 'edge-inspect[openvino]'") from None
        self.name, self._file, self._ov = file.stem, file, openvino
        self._core: Any = openvino.Core()
        self._core.set_property("CPU", {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"})
        self._names = tuple(taps)
        model = self._read()
        if len(model.inputs) != 1 or len(model.input().get_partial_shape()) != 4:
            raise FitError(f"{file}: not a network of images; it must take one input of four dimensions")
        shape = model.input().get_partial_shape()
        self._last = shape[3].is_static and shape[3].get_length() == 3
        if not self._last and not (shape[1].is_static and shape[1].get_length() == 3):
            raise FitError(f"{file}: its input {shape} is no RGB image")
        self._bytes = model.input().get_element_type() == openvino.Type.u8
        self._compiled: dict[tuple[int, int, int], Any] = {}
        found = self._find(_MEASURED_SIDE)
        strides = [_MEASURED_SIDE // int(output.get_partial_shape()[2].get_length()) for output in found]
        channels = [int(output.get_partial_shape()[1].get_length()) for output in found]
        names = self._names or tuple(f"stride {stride}" for stride in strides)
        self._taps = tuple(Tap(*one) for one in zip(names, channels, strides, strict=True))
        self.shifts = tuple(self._measure(number) for number in range(len(self._taps)))
        """Pixels by which the view of each tap is moved forward."""

    @property
    def taps(self) -> tuple[Tap, ...]:
        """See `Teacher`."""
        return self._taps

    def features(self, images: Tensor) -> list[Tensor]:
        """See `Teacher`."""
        pixels = images.permute(0, 2, 3, 1).cpu().numpy()
        found = []
        for number, shift in enumerate(self.shifts):
            views = [self._run(number, _moved(image, shift)) for image in pixels]
            found.append(torch.from_numpy(np.concatenate(views)).to(images.device))
        return found

    def _run(self, number: int, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Tap `number` of one image uint8 [H, W, 3]: float32 [1, C, h, w]."""
        height, width = pixels.shape[:2]
        key = (number, height, width)
        if key not in self._compiled:
            while len(self._compiled) >= KEPT_SHAPES * len(self._taps):
                del self._compiled[next(iter(self._compiled))]
            model, tap = self._open(height, width, number)
            part = self._ov.Model([tap], model.get_parameters(), self.name)
            self._compiled[key] = self._core.compile_model(part, "CPU")
        values: NDArray[Any] = pixels
        if not self._bytes:
            values = ((pixels / 255.0 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)).astype(np.float32)
        if not self._last:
            values = values.transpose(2, 0, 1)
        (output,) = self._compiled[key](np.ascontiguousarray(values[None])).values()
        return np.array(output, np.float32)

    def _read(self) -> Any:
        try:
            return self._core.read_model(self._file)
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise FitError(f"{self._file}: OpenVINO cannot read this network ({reason})") from None

    def _reshaped(self, height: int, width: int) -> Any:
        model = self._read()
        try:
            model.reshape([1, height, width, 3] if self._last else [1, 3, height, width])
        except RuntimeError:
            raise FitError(f"{self._file}: takes no images of {height} x {width}; export it with a free size") from None
        return model

    def _open(self, height: int, width: int, number: int) -> tuple[Any, Any]:
        model = self._reshaped(height, width)
        # Names of operations may differ from one reading to the next: taps are remembered by their place.
        return model, model.get_ordered_ops()[self._places[number]].output(0)

    def _find(self, side: int) -> list[Any]:
        """Outputs that are tapped, in a network reshaped to `side`; remembers their places."""
        operations = self._reshaped(side, side).get_ordered_ops()
        self._places: list[int] = []
        if not self._names:
            sums: dict[int, int] = {}
            for place, operation in enumerate(operations):
                if _is_residual_sum(operation):
                    sums[side // int(operation.output(0).get_partial_shape()[2].get_length())] = place
            self._places = [sums[stride] for stride in DEFAULT_STRIDES if stride in sums]
            if not self._places:
                raise FitError(f"{self._file}: no residual sums of stride 8, 16 or 32; name the outputs with --tap")
        for name in self._names:
            places = [place for place, operation in enumerate(operations) if _is_called(operation, name)]
            if not places:
                raise FitError(f"{self._file}: nothing in this network is called {name!r}")
            shape = operations[places[0]].output(0).get_partial_shape()
            if len(shape) != 4 or shape.is_dynamic or side % max(1, shape[2].get_length()) or shape[2] != shape[3]:
                raise FitError(f"{self._file}: {name!r} is {shape}, no map of features [1, C, H / stride, W / stride]")
            self._places.append(places[0])
        return [operations[place].output(0) for place in self._places]

    def _measure(self, number: int) -> int:
        """By how many pixels the view must move forward so that the cells of tap `number` line up."""
        stride, side = self._taps[number].stride, _MEASURED_SIDE
        rng = np.random.default_rng(0)
        offsets = []
        for _ in range(_MEASURED_PICTURES):
            picture = _clouds(rng, side)
            still = self._run(number, picture)
            for start in range(side // 2, side // 2 + stride, max(1, stride // 4)):
                changed = picture.copy()
                changed[:, start : start + 2] = rng.integers(0, 256, (side, 2, 3), np.uint8)
                change = np.square(self._run(number, changed) - still).sum((0, 1, 2), np.float64)
                if change.sum() > 0:
                    offsets.append(start + 1 - stride * float(change @ np.arange(len(change)) / change.sum()))
        if not offsets:
            raise FitError(f"{self._file}: {self._taps[number].name!r} does not depend on the image")
        return round(min(max(float(np.mean(offsets)) - stride / 2, -stride / 2), stride / 2))


def _clouds(rng: np.random.Generator, side: int) -> NDArray[np.uint8]:
    """A random picture with the spectrum of photographs, about 1 / frequency: uint8 [side, side, 3]."""
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None])
    frequency[0, 0] = 1.0
    planes = [np.fft.irfft2(np.fft.rfft2(rng.normal(size=(side, side))) / frequency, (side, side)) for _ in range(3)]
    picture = np.stack(planes, axis=-1)
    levels: NDArray[np.uint8] = np.clip(128 + 50 * (picture - picture.mean()) / picture.std(), 0, 255).astype(np.uint8)
    return levels


def _is_residual_sum(operation: Any) -> bool:
    """Whether an operation adds two maps of features, neither of them constant."""
    if operation.get_type_name() != "Add" or len(operation.output(0).get_partial_shape()) != 4:
        return False
    shape = operation.output(0).get_partial_shape()
    sources = [source.get_source_output() for source in operation.inputs()]
    return bool(shape.is_static) and all(source.get_partial_shape() == shape for source in sources)


def _is_called(operation: Any, name: str) -> bool:
    return bool(
        operation.get_friendly_name() == name or any(name in output.get_names() for output in operation.outputs())
    )


def _moved(image: NDArray[np.uint8], shift: int) -> NDArray[np.uint8]:
    """The image [H, W, 3] moved down and right by `shift` pixels, what comes in reflected; size kept."""
    if shift == 0:
        return image
    height, width = image.shape[:2]
    if shift > 0:
        return np.pad(image, ((shift, 0), (shift, 0), (0, 0)), mode="reflect")[:height, :width]
    return np.pad(image, ((0, -shift), (0, -shift), (0, 0)), mode="reflect")[-height:, -width:]
