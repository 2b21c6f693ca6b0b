"""Trigger settings, by the names of GenICam's Standard Features Naming Convention (2.7, chapters 5 and 10)."""

from __future__ import annotations

from edge.capture.features import FeatureSet
from edge.errors import SourceError
from edge.settings_genicam import GigeSource


def set_trigger(features: FeatureSet, settings: GigeSource) -> None:
    """Turns every trigger off, then the one that is wanted on.

    Raises `SourceError` where the camera has no such input, edge, delay or encoder.
    """
    if not features.has("TriggerMode"):
        if settings.trigger != "off":
            features.describe("TriggerMode")  # says that there is none
        return
    selectors = features.describe("TriggerSelector").choices if features.has("TriggerSelector") else ()
    for selector in selectors or ("",):
        if selector:
            features.set("TriggerSelector", selector)
        if features.has("TriggerMode"):
            features.set("TriggerMode", "Off")
    if settings.trigger == "off":
        return
    if selectors:
        features.set("TriggerSelector", "FrameStart")
    source = {"line": settings.trigger_line, "software": "Software", "encoder": settings.encoder}[settings.trigger]
    if settings.trigger == "encoder":
        _set_encoder(features, settings)
    features.set("TriggerSource", source)
    if settings.trigger == "line" and (features.has("TriggerActivation") or settings.trigger_edge != "rising"):
        features.set("TriggerActivation", f"{settings.trigger_edge.capitalize()}Edge")
    delay = features.first("TriggerDelay", "TriggerDelayAbs")
    if delay is not None:
        features.set(delay, settings.trigger_delay_us)
    elif settings.trigger_delay_us:
        raise SourceError(f"trigger_delay_us = {settings.trigger_delay_us:g}: this camera has no TriggerDelay")
    features.set("TriggerMode", "On")


def _set_encoder(features: FeatureSet, settings: GigeSource) -> None:
    """Encoder inputs and divider; cameras without EncoderDivider divide the trigger."""
    features.set("EncoderSelector", settings.encoder)
    features.set("EncoderSourceA", settings.encoder_line_a)
    if features.has("EncoderSourceB"):
        features.set("EncoderSourceB", settings.encoder_line_b)
    divider = features.first("EncoderDivider", "TriggerDivider") or "EncoderDivider"
    features.set(divider, settings.encoder_divider)
