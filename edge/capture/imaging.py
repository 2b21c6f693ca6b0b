"""Region, format, exposure and rate of a GenICam camera, by names of the Standard Features Naming Convention 2.7."""

from __future__ import annotations

from edge.capture.features import FeatureSet
from edge.capture.wire_formats import WireFormat
from edge.settings_genicam import GenicamSource


def set_image(features: FeatureSet, settings: GenicamSource) -> tuple[WireFormat, int, int]:
    """Sets format, region, exposure, gain and rate. Returns the format, height and width that frames have then.

    Raises `SourceError` that names the feature, the value and what is allowed.
    """
    if features.has("AcquisitionMode"):
        features.set("AcquisitionMode", "Continuous")
    wire = WireFormat(settings.pixel_format)
    known = features.describe("PixelFormat").choices
    features.set("PixelFormat", next((name for name in wire.names if name in known), wire.name))
    height, width = _set_region(features, settings)
    _set_exposure(features, settings)
    return wire, height, width


def set_others(features: FeatureSet, settings: GenicamSource) -> None:
    """Sets what the settings name by GenICam names, in their order. Raises `SourceError`."""
    for name, value in settings.features.items():
        features.set(name, value)


def free_rate_hz(features: FeatureSet, settings: GenicamSource) -> float | None:
    """Frames per second of a camera that runs freely, where it tells."""
    if not settings.runs_freely:
        return None
    name = features.first(
        "ResultingFrameRate", "ResultingFrameRateAbs", "AcquisitionFrameRate", "AcquisitionFrameRateAbs", "FPS"
    )
    rate = features.get(name) if name is not None else None
    return float(rate) if rate is not None and 0 < float(rate) <= 1000 else None


def _set_region(features: FeatureSet, settings: GenicamSource) -> tuple[int, int]:
    """Height and width as the camera has them then."""
    for name in ("BinningHorizontal", "BinningVertical"):
        if features.has(name) or settings.binning != 1:
            features.set(name, settings.binning)
    for name in ("OffsetX", "OffsetY"):  # an offset left over narrows what width and height may be
        if features.has(name):
            features.set(name, 0)
    size = []
    for name, wanted in (("Height", settings.height_px), ("Width", settings.width_px)):
        largest = features.describe(name).maximum
        if wanted is None and largest is not None:
            wanted = int(largest)
        size.append(int(features.set(name, wanted) if wanted is not None else features.get(name) or 0))
    for name, offset in (("OffsetX", settings.offset_x_px), ("OffsetY", settings.offset_y_px)):
        if offset:
            features.set(name, offset)
    return size[0], size[1]


def _set_exposure(features: FeatureSet, settings: GenicamSource) -> None:
    if settings.exposure_us is not None:
        _set_auto_off(features, "ExposureAuto")
        _set_first(features, ("ExposureTime", "ExposureTimeAbs", "ExposureTimeRaw"), settings.exposure_us)
    if settings.gain is not None:
        _set_auto_off(features, "GainAuto")
        _set_first(features, ("Gain", "GainAbs", "GainRaw"), settings.gain)
    if settings.rate_hz is not None and settings.runs_freely:
        for name in ("AcquisitionFrameRateEnable", "AcquisitionFrameRateEnabled"):
            if features.has(name):
                features.set(name, True)
        _set_first(features, ("AcquisitionFrameRate", "AcquisitionFrameRateAbs", "FPS"), settings.rate_hz)


def _set_auto_off(features: FeatureSet, name: str) -> None:
    if features.has(name):
        features.set(name, "Off")


def _set_first(features: FeatureSet, names: tuple[str, ...], value: float) -> None:
    """Sets the one of these features that the camera has; the first is reported missing where it has none."""
    features.set(features.first(*names) or names[0], value)
