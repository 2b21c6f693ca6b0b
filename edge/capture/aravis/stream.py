"""Frames of a camera, received by Aravis' thread straight into slots of the frame ring.

A buffer of Aravis' wraps the memory of one slot and is used again whenever that slot comes round. Slots that are given
to the receiver are "being written" until their frame is popped, or the stream is closed.

Two traps. The receiver writes frame number and times into a buffer only when the first packet of the frame (the leader)
arrives; without it, they would be those of the frame that was in the buffer before, so they are cleared on every push.
And memory must outlive the receiver's thread: slots go back to the ring only after the stream is gone.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge.capture.aravis import network
from edge.capture.aravis.camera import Camera, Delivery
from edge.capture.aravis.library import (
    RESEND_NEVER,
    SOCKET_BUFFER_FIXED,
    BufferStatus,
    library,
    text,
)
from edge.capture.source import Slot, SlotPool
from edge.errors import RingError, SourceError
from edge.settings_genicam import GigeSource

_BUFFER_MIN = 4 << 20  # of a UDP socket; what loses no frame at 390 MB/s on loopback
STATISTICS = {  # Aravis' name: ours
    "n_completed_buffers": "frames_complete",
    "n_failures": "frames_failed",
    "n_underruns": "packets_without_buffer",
    "n_missing_frames": "frames_missing",
    "n_size_mismatch_errors": "size_mismatches",
    "n_received_packets": "packets_received",
    "n_missing_packets": "packets_missing",
    "n_error_packets": "packets_error",
    "n_ignored_packets": "packets_ignored",
    "n_resend_requests": "resend_requests",
    "n_resent_packets": "packets_resent",
    "n_duplicated_packets": "packets_duplicated",
}


@dataclass(frozen=True)
class Received:
    """A frame, or what came of it. `frame_id` and the times are 0 where its leader was lost."""

    status: BufferStatus
    frame_id: int
    device_ns: int  # the camera's clock
    host_ns: int  # CLOCK_REALTIME when its first packet came
    matches: bool  # whether size and format are those announced, so that the slot holds the image
    slot: Slot  # of the ring; the taker commits or returns it
    buffer: int  # Aravis' buffer, for its chunks; valid until the slot is given out again


class FrameStream:
    """The receiver of one camera."""

    def __init__(self, camera: Camera, delivery: Delivery, settings: GigeSource) -> None:
        """Prepares it. Raises `SourceError` where the network settings of this computer do not allow what is asked."""
        self._arv = library()
        self._camera, self._delivery = camera, delivery
        self.notes: list[str] = []  # what people should know
        self._slots: dict[int, Slot] = {}  # given to the receiver, by ring index
        self._buffers: dict[int, int] = {}  # Aravis' buffers that are ours, by ring index
        self._filling: dict[int, int] = {}  # those the receiver has
        self._private: dict[int, NDArray[np.uint8]] = {}  # memory for formats that have to be unpacked
        self._pool: SlotPool | None = None
        self._statistics: dict[str, int] = {}
        packet = self._choose_socket(settings)
        before = network.packet_sockets_open()
        self._stream: int | None = camera.create_stream(packet)
        try:
            self._set_options(settings)
            self.socket = "packet" if network.packet_sockets_open() > before else "udp"
            if packet and self.socket == "udp":
                why = "Aravis could not open a packet socket and fell back to UDP"
                if settings.socket == "packet":
                    raise SourceError(f'camera {camera.address}: {why}; set socket = "udp" if that will do')
                self.notes.append(why)
            if self.socket == "udp":
                self._size_receive_buffer(settings)
            known = {text(self._arv.stream_get_info_name(self._stream, n)) for n in range(self._info_count())}
            self._known_statistics = [name for name in STATISTICS if name in known]
        except BaseException:
            self.close()
            raise

    def start(self, pool: SlotPool, buffers: int) -> None:
        """Gives slots to the receiver and starts the camera. Raises `SourceError`."""
        self._pool = pool
        for _ in range(buffers):
            if not self.refill():
                raise SourceError(
                    f"camera {self._camera.address}: a frame needs {self._delivery.payload_bytes} bytes, the ring's "
                    "slots are smaller or all taken: the camera's frames grew since this process started; restart it"
                )
        self._camera.start()

    def pop(self, timeout_s: float) -> Received | None:
        """The next frame that is whole, or given up; None when none came in time."""
        buffer = self._arv.stream_timeout_pop_buffer(self._stream, max(0, round(timeout_s * 1e6)))
        if buffer is None:
            return None
        index = int(self._arv.buffer_get_user_data(buffer)) - 1
        self._buffers[index] = self._filling.pop(index)
        status = BufferStatus(self._arv.buffer_get_status(buffer))
        return Received(
            status=status,
            frame_id=int(self._arv.buffer_get_frame_id(buffer)),
            device_ns=int(self._arv.buffer_get_timestamp(buffer)),
            host_ns=int(self._arv.buffer_get_system_timestamp(buffer)),
            matches=status is BufferStatus.SUCCESS and self._matches(buffer),
            slot=self._slots.pop(index),
            buffer=buffer,
        )

    def unpack(self, received: Received) -> None:
        """Writes the frame's 8 bits per sample into its slot, where the format is not received in place."""
        private = self._private.get(received.slot.index)
        if private is not None:
            size = self._delivery.height * self._delivery.width
            self._delivery.wire.unpack(private, received.slot.buffer[:size])

    def refill(self) -> bool:
        """Gives the receiver another slot. False where the ring has none left, or its slots are too small."""
        assert self._pool is not None
        try:
            slot = self._pool.acquire()
        except RingError:
            return False
        return self.reuse(slot)

    def reuse(self, slot: Slot) -> bool:
        """Gives a slot whose frame is of no use back to the receiver."""
        assert self._pool is not None
        buffer = self._buffers.pop(slot.index, None) or self._wrap(slot)
        if buffer is None:
            self._pool.release(slot)
            return False
        self._arv.buffer_set_frame_id(buffer, 0)
        self._arv.buffer_set_timestamp(buffer, 0)
        self._arv.buffer_set_system_timestamp(buffer, 0)
        self._slots[slot.index], self._filling[slot.index] = slot, buffer
        self._arv.stream_push_buffer(self._stream, buffer)  # which owns the buffer until it is popped
        return True

    def under_way(self) -> set[int]:
        """Ids of frames of which some packets came, and others are waited for; 0 is one whose leader did not come."""
        return {
            int(self._arv.buffer_get_frame_id(buffer))
            for buffer in self._filling.values()
            if self._arv.buffer_get_status(buffer) == BufferStatus.FILLING
        }

    def statistics(self) -> dict[str, int]:
        """What the receiver counted since it was made."""
        if self._stream is not None:
            for name in self._known_statistics:
                value = self._arv.stream_get_info_uint64_by_name(self._stream, name.encode())
                self._statistics[STATISTICS[name]] = int(value)
        return dict(self._statistics)

    def close(self) -> None:
        """Ends the receiver, then gives its slots back to the ring. Safe to call twice."""
        if self._stream is None:
            return
        if hasattr(self, "_known_statistics"):
            self.statistics()
        stream, self._stream = self._stream, None
        self._arv.unref(stream)  # joins its thread and frees the buffers it holds
        for buffer in self._buffers.values():
            self._arv.unref(buffer)
        self._buffers.clear()
        self._filling.clear()
        for slot in self._slots.values():
            assert self._pool is not None
            self._pool.release(slot)
        self._slots.clear()
        self._private.clear()

    def _choose_socket(self, settings: GigeSource) -> bool:
        """Whether to ask for a packet socket."""
        if settings.socket == "udp":
            return False
        if network.may_use_packet_sockets():
            return True
        if settings.socket == "packet":
            raise SourceError(f"camera {self._camera.address}: {network.capability_advice()}")
        self.notes.append(f"frames come by UDP: {network.capability_advice()}")
        return False

    def _set_options(self, settings: GigeSource) -> None:
        assert self._stream is not None
        if not settings.resend:
            self._arv.set_property(self._stream, "packet-resend", RESEND_NEVER)
        self._arv.set_property(self._stream, "frame-retention", round(settings.retention_ms * 1000))

    def _size_receive_buffer(self, settings: GigeSource) -> None:
        assert self._stream is not None
        wanted = max(_BUFFER_MIN, 2 * self._delivery.payload_bytes)
        if settings.receive_buffer_mb is not None:
            wanted = round(settings.receive_buffer_mb * 1e6)
        got = network.size_receive_buffer(int(self._arv.gv_stream_get_port(self._stream)), wanted)
        if got < wanted:
            if settings.receive_buffer_mb is not None:
                raise SourceError(f"camera {self._camera.address}: {network.receive_buffer_advice(wanted)}")
            self.notes.append(network.receive_buffer_advice(wanted))
        # Else Aravis would make it as large as a frame when the first one begins.
        self._arv.set_property(self._stream, "socket-buffer", SOCKET_BUFFER_FIXED)
        self._arv.set_property(self._stream, "socket-buffer-size", max(got, 1))

    def _wrap(self, slot: Slot) -> int | None:
        """A new buffer around the slot's memory, or None where it is too small."""
        delivery = self._delivery
        if slot.buffer.size < delivery.height * delivery.width * delivery.wire.frame.channels:
            return None
        memory = slot.buffer
        if not delivery.wire.in_place:
            memory = self._private[slot.index] = np.empty(delivery.payload_bytes, np.uint8)
        elif memory.size < delivery.payload_bytes:
            return None
        buffer = self._arv.buffer_new_full(delivery.payload_bytes, memory.ctypes.data, slot.index + 1, None)
        return int(buffer)

    def _matches(self, buffer: int) -> bool:
        """Whether the image lies at the start of the memory, in the announced size and format, without padding."""
        arv, delivery = self._arv, self._delivery
        across, down = ctypes.c_int(), ctypes.c_int()
        arv.buffer_get_image_padding(buffer, ctypes.byref(across), ctypes.byref(down))
        return (
            arv.buffer_get_image_width(buffer) == delivery.width
            and arv.buffer_get_image_height(buffer) == delivery.height
            and arv.buffer_get_image_pixel_format(buffer) == delivery.wire.code
            and across.value == 0
            and down.value == 0
        )

    def _info_count(self) -> int:
        return int(self._arv.stream_get_n_infos(self._stream))
