"""Which of OpenCV's sources the settings mean: a file that is played at a rate, or a stream that comes by itself."""

from __future__ import annotations

import cv2

from edge.capture.source import Source
from edge.capture.stream import StreamSource
from edge.capture.video_file import VideoFileSource
from edge.settings_sources import OpencvSource as OpencvSettings


def opencv_source(settings: OpencvSettings) -> Source:
    """A video file, or a network stream, device or named pipe."""
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)  # errors only: what fails is told in our own words
    if settings.file is not None and not settings.file.is_fifo():
        return VideoFileSource(settings)
    return StreamSource(settings)
