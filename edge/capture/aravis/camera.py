"""One GigE Vision camera: opened, told what to do, asked what it is.

Every call waits for the camera: milliseconds, and seconds where it is dead. So none belongs into the frame loop.
What is set outlives a session in the camera, triggers above all: `configure` therefore sets all that matters.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from edge.capture.aravis import network
from edge.capture.aravis.discovery import find
from edge.capture.aravis.features import Features
from edge.capture.aravis.library import (
    PACKET_SIZE_ADJUSTMENT_NEVER,
    PACKET_SOCKET_DISABLED,
    AravisError,
    DeviceError,
    library,
    text,
)
from edge.capture.aravis.triggers import set_trigger
from edge.capture.imaging import free_rate_hz, set_image, set_others
from edge.capture.wire_formats import WireFormat
from edge.errors import SourceAway, SourceError
from edge.settings_genicam import GigeSource

_OVERHEAD_BYTES = 36  # of a packet: IP 20, UDP 8, GVSP 8 (GigE Vision 2.0, section 24)


@dataclass(frozen=True)
class Delivery:
    """What the camera will send, as it says itself."""

    wire: WireFormat
    height: int
    width: int
    payload_bytes: int  # of a frame on the wire, chunks included
    rate_hz: float | None  # of a freely running camera, where it tells
    packet_bytes: int


class Camera:
    """An open camera that we control."""

    def __init__(self, settings: GigeSource) -> None:
        """Opens it and takes control.

        Raises `SourceAway` where it is not there or is another program's, `SourceError` where it can never work.
        """
        self._arv = library()
        self._settings = settings
        address = settings.address if settings.address is not None else find(settings.serial or "").address
        self.address = address
        try:
            self._camera: int | None = self._arv.camera_new(address.encode())
        except AravisError as error:
            why = network.unreachable(address)
            raise SourceAway(
                f"camera {address}: " + (why or f"does not answer ({error}); is it on, and the address right?")
            ) from error
        assert self._camera is not None
        try:
            self.model = text(self._arv.camera_get_model_name(self._camera))
            self.vendor = text(self._arv.camera_get_vendor_name(self._camera))
            self.serial = text(self._arv.camera_get_device_serial_number(self._camera))
            self._device = int(self._arv.camera_get_device(self._camera))
            self.features = Features(self._device, f"camera {address}")
        except AravisError as error:
            self.close()
            raise SourceAway(f"camera {address}: {error}") from error

    @property
    def name(self) -> str:
        """For people: who made it, which one, where."""
        return f"{self.vendor} {self.model} ({self.serial}) at {self.address}"

    @property
    def controlled(self) -> bool:
        """Whether we still control it. Answers at once; a dead camera is noticed after 5 s."""
        return self._camera is not None and bool(self._arv.gv_device_is_controller(self._device))

    def require_control(self) -> None:
        """Raises `SourceAway` where another program controls the camera."""
        if not self.controlled:
            raise SourceAway(
                f"camera {self.address} is in use by another program or computer, which must close it first (a program "
                "that was killed keeps it for a few seconds more)"
            )

    def configure(self) -> Delivery:
        """Sets everything that the settings name, and the trigger, which outlives sessions.

        Raises `SourceError` that names the feature, the value and what is allowed.
        """
        settings, features = self._settings, self.features
        self.require_control()
        if features.has("ChunkModeActive"):
            features.set("ChunkModeActive", False)
        wire, height, width = set_image(features, settings)
        set_trigger(features, settings)
        set_others(features, settings)
        if settings.encoder_chunk is not None:
            self._set_chunk(settings.encoder_chunk)
        packet_bytes = self._set_packets()
        payload = self._payload()
        if payload < wire.bytes_for(height, width):
            raise SourceError(
                f"camera {self.address}: it announces {payload} bytes for a frame of {width} x {height} {wire.name}, "
                "which do not hold it; is a feature set that changes the region or compresses?"
            )
        return Delivery(wire, height, width, payload, free_rate_hz(features, settings), packet_bytes)

    def create_stream(self, packet_socket: bool) -> int:
        """Aravis' receiver (give it back by `unref`). Raises `SourceAway`."""
        options = 0 if packet_socket else PACKET_SOCKET_DISABLED
        self._arv.camera_gv_set_stream_options(self._camera, options)
        try:
            return int(self._arv.camera_create_stream(self._camera, None, None))
        except AravisError as error:
            raise self._failed("cannot prepare the stream", error) from error

    def create_chunk_parser(self) -> int:
        """What finds chunks in frames (give it back by `unref`)."""
        return int(self._arv.camera_create_chunk_parser(self._camera))

    def start(self) -> None:
        """The camera sends from now on. Raises `SourceAway`."""
        try:
            self._arv.camera_start_acquisition(self._camera)
        except AravisError as error:
            raise self._failed("does not start", error) from error

    def software_trigger(self) -> None:
        """Takes one picture. Raises `SourceAway` where the camera does not take the command."""
        try:
            self._arv.camera_software_trigger(self._camera)
        except AravisError as error:
            raise self._failed("does not take the software trigger", error) from error

    def stop(self) -> None:
        """The camera sends no more; a dead one is not waited for longer than its time-outs (2 s)."""
        if self.controlled:
            with suppress(AravisError):
                self._arv.camera_stop_acquisition(self._camera)

    def close(self) -> None:
        """Gives up control. Takes up to 5 s where the camera is dead."""
        if self._camera is not None:
            camera, self._camera = self._camera, None
            self._arv.unref(camera)

    def _set_chunk(self, name: str) -> None:
        self.features.set("ChunkModeActive", True)
        self.features.set("ChunkSelector", name)
        self.features.set("ChunkEnable", True)

    def _set_packets(self) -> int:
        settings = self._settings
        self._arv.camera_gv_set_packet_size_adjustment(self._camera, PACKET_SIZE_ADJUSTMENT_NEVER)
        try:
            if settings.packet_size_bytes is None:
                self._arv.camera_gv_auto_packet_size(self._camera)
            else:
                self._arv.camera_gv_set_packet_size(self._camera, settings.packet_size_bytes)
            size = int(self._arv.camera_gv_get_packet_size(self._camera))
            if settings.packet_delay_ns is not None:
                self._arv.camera_gv_set_packet_delay(self._camera, settings.packet_delay_ns)
        except AravisError as error:
            raise self._failed("refuses packet size or delay", error) from error
        if settings.packet_size_bytes not in (None, size):
            raise SourceError(
                f"camera {self.address}: packet_size_bytes = {settings.packet_size_bytes}: the camera made {size} of it"
            )
        if size <= _OVERHEAD_BYTES:
            raise SourceError(f"camera {self.address}: no packet size gets through; set packet_size_bytes, say to 1400")
        subnet = network.subnet_of(self.address)
        largest = None if subnet is None else network.mtu(subnet.interface)
        if subnet is not None and largest is not None and size > largest:
            raise SourceError(
                f"camera {self.address}: packet_size_bytes = {size} is more than the MTU of {subnet.interface} "
                f"({largest}): frames would never arrive; use at most {largest}, or raise the MTU on every network "
                "card and switch between here and the camera"
            )
        return size

    def _payload(self) -> int:
        try:
            return int(self._arv.camera_get_payload(self._camera))
        except AravisError as error:
            raise self._failed("does not tell the size of its frames", error) from error

    def _failed(self, what: str, error: AravisError) -> SourceError:
        if error.device_error in (DeviceError.ACCESS_DENIED, DeviceError.NOT_CONTROLLER):
            return SourceAway(f"camera {self.address} {what}: another program or computer controls it ({error})")
        return (SourceAway if error.away else SourceError)(f"camera {self.address} {what} ({error})")
