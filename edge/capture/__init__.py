"""Capture: one process per camera turns frames into slots of the ring and announces each part."""

from edge.capture.process import CaptureProcess
from edge.capture.sources import open_source

__all__ = ["CaptureProcess", "open_source"]
