"""Cameras of any interface and maker through their GenTL producer, by harvesters.

The producer fills memory of its own, so a frame is copied once, into its slot. What a producer tells besides pixels
(frame ids, completeness, times) differs from maker to maker: what it does not tell is None, or taken for fine.
"""

from __future__ import annotations

import ctypes
from collections import Counter, deque
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge.capture.connection import CameraLost, ConnectedSource, Connection, Shape
from edge.capture.device_clock import DeviceClock
from edge.capture.frame_ids import FrameIds
from edge.capture.gentl_features import GentlFeatures
from edge.capture.imaging import free_rate_hz, set_image, set_others
from edge.capture.source import Grab, SlotPool, SourceInfo
from edge.errors import RingError, SourceAway, SourceError
from edge.messages import FrameStatus, now_ns
from edge.settings_genicam import GentlSource as GentlSettings

RATE_UNKNOWN_HZ = 60.0  # assumed for the ring's size where neither camera nor settings tell
INSTALL = "GenTL producers need harvesters: pip install 'edge-inspect[gentl]'"
GAP_MAX = 1024  # ids that may be missing at once: more means that the camera counts anew


class GentlConnection(Connection):
    """One session with a camera."""

    def __init__(self, settings: GentlSettings) -> None:
        """Loads the producer, opens and configures the camera. Raises `SourceError`; `SourceAway` where it may come."""
        try:
            from genicam import genapi, gentl
            from harvesters.core import Harvester
        except ImportError as error:
            raise SourceError(f"{INSTALL} ({error})") from error
        self._failures: tuple[type[Exception], ...] = (gentl.GenericException, genapi.GenericException, OSError)
        self._timeout: type[Exception] = gentl.TimeoutException
        self._settings = settings
        self._pool: SlotPool | None = None
        self._counts: Counter[str] = Counter()
        self._ids, self._clock = FrameIds(), DeviceClock()
        self._ready: deque[Grab] = deque()
        self._heard_ns = self._last_ns = 0
        self._acquirer: Any = None
        if not settings.producer.is_file():
            raise SourceError(
                f"{settings.producer}: there is no such GenTL producer (.cti); install the maker's package"
            )
        self._harvester: Any = Harvester()
        try:
            self._open(gentl)
        except BaseException:
            self.close()
            raise

    def start(self, pool: SlotPool) -> None:
        """Frames may come. Raises `SourceError`."""
        self._pool = pool
        try:
            self._acquirer.start()
        except self._failures as error:
            raise SourceAway(f"{self._name}: does not start ({error})") from error
        self._heard_ns = now_ns()

    def next(self, timeout_s: float) -> Grab | None:
        """The next part. Raises `CameraLost`."""
        if self._ready:
            return self._ready.popleft()
        try:
            buffer = self._acquirer.try_fetch(timeout=max(timeout_s, 0.001))
            if buffer is not None:
                self._heard_ns = now_ns()
                try:
                    self._take(buffer)
                finally:
                    buffer.queue()
        except self._timeout:
            buffer = None
        except self._failures as error:
            raise CameraLost(f"{self._name}: is lost ({error}); are power and cable in order?") from error
        silent_s = (now_ns() - self._heard_ns) / 1e9
        if buffer is None and self.stalled(silent_s, self._settings.stall_s):
            raise CameraLost(f"{self._name}: no frame for {silent_s:.1f} s, though it should run freely; is it on?")
        return self._ready.popleft() if self._ready else None

    def close(self) -> None:
        """Camera and producer are free again."""
        for grab in self._ready:
            if grab.slot is not None and self._pool is not None:
                self._pool.release(grab.slot)
        self._ready.clear()
        acquirer, self._acquirer = self._acquirer, None
        if acquirer is not None:
            with suppress(*self._failures):
                acquirer.stop()
            with suppress(*self._failures):
                acquirer.destroy()
        harvester, self._harvester = self._harvester, None
        if harvester is not None:
            with suppress(*self._failures):
                harvester.reset()

    def counters(self) -> dict[str, int]:
        """Parts without a usable frame, by why."""
        return dict(self._counts)

    def _open(self, gentl: Any) -> None:
        settings = self._settings
        try:
            ctypes.CDLL(str(settings.producer))  # harvesters passes over what does not load
            self._harvester.add_file(str(settings.producer))
            self._harvester.update()
        except self._failures as error:
            raise SourceError(
                f"{settings.producer}: this GenTL producer does not load ({error}); is it one for this processor, and "
                "complete?"
            ) from error
        number, self._name = self._choose()
        try:
            self._acquirer = self._harvester.create(number)
        except (gentl.ResourceInUseException, gentl.AccessDeniedException, gentl.BusyException) as error:
            raise SourceAway(f"{self._name} is in use by another program, which must close it first") from error
        except self._failures as error:
            raise SourceAway(f"{self._name} does not open ({error})") from error
        features = GentlFeatures(self._acquirer.remote_device.node_map, self._name)
        try:
            self._wire, height, width = set_image(features, settings)
            set_others(features, settings)
            rate_hz = settings.rate_hz or free_rate_hz(features, settings)
            self._acquirer.num_buffers = max(settings.buffers, self._acquirer.min_num_buffers)
        except self._failures as error:
            raise SourceAway(f"{self._name}: {error}") from error
        form, self.by_trigger = self._wire.frame, not settings.runs_freely
        self.shape = Shape(form, height, width)
        self.period_ns = round(1e9 / rate_hz) if rate_hz and settings.runs_freely else None
        self.info = SourceInfo(
            max_bytes=height * width * form.channels,
            max_rate_hz=rate_hz or RATE_UNKNOWN_HZ,
            finite=False,
            description=f"{self._name}, {width} x {height} {self._wire.name}, trigger {settings.trigger}",
        )

    def _choose(self) -> tuple[int, str]:
        """Number and name of the camera that the settings mean."""
        found = []
        for info in self._harvester.device_info_list:
            facts = {key: self._told(info, key) for key in ("vendor", "model", "serial_number", "user_defined_name")}
            facts["id"] = self._told(info, "id_")
            found.append(facts)
        wanted = self._settings.serial
        names = ("serial_number", "user_defined_name", "id")
        matches = [n for n, facts in enumerate(found) if wanted in (None, *(facts[name] for name in names))]
        listed = ", ".join(f"{facts['serial_number']} ({facts['model']})" for facts in found) or "none"
        if len(matches) == 1:
            facts = found[matches[0]]
            return matches[0], f"camera {facts['vendor']} {facts['model']} ({facts['serial_number']})"
        if not matches:
            what = "no camera" if wanted is None else f"no camera with the serial number or name {wanted!r}"
            raise SourceAway(f"{self._settings.producer.name} finds {what}; it finds: {listed}")
        raise SourceError(f"{self._settings.producer.name} finds several cameras: {listed}; set serial to one of them")

    def _told(self, source: Any, name: str) -> Any:
        """What a producer tells; None where it does not."""
        try:
            value = getattr(source, name)
            return value() if callable(value) else value
        except self._failures:
            return None
        except AttributeError:  # of this version of the library
            return None

    def _take(self, buffer: Any) -> None:
        """One frame of the producer's: what is announced for it goes to `_ready`."""
        module = buffer.module
        frame_id = self._told(module, "frame_id")
        device_ns = int(self._told(module, "timestamp_ns") or 0)
        trigger_ns = self._clock.host_ns(device_ns, now_ns())
        if frame_id is not None:
            ahead = self._ids.step(int(frame_id))
            if not 0 < ahead <= GAP_MAX:  # the camera counts anew, or its ids mean something else
                self._ids.last, ahead = int(frame_id), 1
            step_ns = (trigger_ns - self._last_ns) // ahead if self._last_ns else 0
            for number in range(1, ahead):
                self._ready.append(self.shape.lost(trigger_ns - step_ns * (ahead - number)))
                self._counts["frames_lost"] += 1
        self._last_ns = trigger_ns
        status, slot = FrameStatus.OK, None
        image = self._image(buffer)
        if self._told(module, "is_complete") is False:
            status = FrameStatus.INCOMPLETE
        elif image is None:
            status = FrameStatus.MISMATCH
        else:
            slot, status = self._copied(image)
        if status is not FrameStatus.OK:
            self._counts[f"frames_{status.value}"] += 1
        self._ready.append(
            Grab(
                status,
                slot,
                self.shape.pixel_format,
                self.shape.height,
                self.shape.width,
                trigger_ns,
                camera_frame=None if frame_id is None else int(frame_id),
                camera_time_ns=device_ns or None,
            )
        )

    def _image(self, buffer: Any) -> NDArray[np.uint8] | None:
        """The bytes of the image on the wire, where it is the one that was announced."""
        components = buffer.payload.components
        if not components:
            return None
        part, shape = components[0], self.shape
        padded = bool(self._told(buffer.module, "padding_x"))
        if (
            (part.height, part.width) != (shape.height, shape.width)
            or part.data_format not in self._wire.names
            or padded
        ):
            return None
        data: NDArray[np.uint8] = part.data.view(np.uint8).reshape(-1)
        return data if data.size >= self._wire.bytes_for(shape.height, shape.width) else None

    def _copied(self, image: NDArray[np.uint8]) -> tuple[Any, FrameStatus]:
        """A slot with the frame, 8 bits per channel."""
        assert self._pool is not None
        size = self.info.max_bytes
        try:
            slot = self._pool.acquire()
        except RingError:
            return None, FrameStatus.NO_SLOT
        if slot.buffer.size < size:
            self._pool.release(slot)
            return None, FrameStatus.NO_SLOT
        if self._wire.in_place:
            np.copyto(slot.buffer[:size], image[:size])
        else:
            self._wire.unpack(image, slot.buffer[:size])
        return slot, FrameStatus.OK


class GentlSource(ConnectedSource):
    """A camera behind a GenTL producer that is kept connected."""

    def __init__(self, settings: GentlSettings) -> None:
        super().__init__(settings.reconnect_max_s)
        self._settings = settings

    def _connect(self) -> Connection:
        return GentlConnection(self._settings)
