"""Chunks: values that a camera sends along with a frame (GenICam SFNC, chapter on chunk data control)."""

from __future__ import annotations

from edge.capture.aravis.camera import Camera
from edge.capture.aravis.library import AravisError, library


class EncoderChunk:
    """The encoder count of a frame."""

    def __init__(self, camera: Camera, name: str) -> None:
        """`name` is the entry of ChunkSelector; the value is the feature Chunk<name>."""
        self._arv = library()
        self._feature = f"Chunk{name}".encode()
        self._parser: int | None = camera.create_chunk_parser()

    def read(self, buffer: int) -> int | None:
        """The count in Aravis' buffer, None where the frame carries none."""
        if self._parser is None or not self._arv.buffer_has_chunks(buffer):
            return None
        try:
            return int(self._arv.chunk_parser_get_integer_value(self._parser, buffer, self._feature))
        except AravisError:
            return None

    def close(self) -> None:
        """Frees the parser. Safe to call twice."""
        if self._parser is not None:
            self._arv.unref(self._parser)
            self._parser = None
