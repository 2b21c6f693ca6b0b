"""The kinds of source, by the `type` of their settings. A kind is imported when a camera uses it, not before."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from edge.capture.source import Source
from edge.errors import SourceError
from edge.settings_sources import SourceSection

SOURCES: dict[str, str] = {
    "simulated": "edge.capture.simulated:SimulatedSource",
    "folder": "edge.capture.folder:FolderSource",
    "opencv": "edge.capture.opencv_source:opencv_source",
    "gige": "edge.capture.gige:GigeSource",
    "gentl": "edge.capture.gentl:GentlSource",
}
"""`module:callable` that takes the settings and gives a source that is not open yet."""


def open_source(settings: SourceSection) -> Source:
    """The source that the settings describe, not yet open. Raises `SourceError` where its library cannot be loaded."""
    kind: str = getattr(settings, "type", "")
    if kind not in SOURCES:
        raise SourceError(f"source type {kind!r}: one of {', '.join(SOURCES)}")
    module, _, name = SOURCES[kind].partition(":")
    try:
        make: Callable[[SourceSection], Source] = getattr(import_module(module), name)
    except ImportError as error:
        raise SourceError(f"source type {kind}: its library cannot be loaded ({error})") from error
    return make(settings)
