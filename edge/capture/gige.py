"""GigE Vision cameras: a session with one, and the source that keeps it going.

Parts are announced in the order of the camera's frame ids, each once, and at once: a gap in the ids is announced before
the frame that shows it, as INCOMPLETE where some of its packets came (they may still be waited for) and as LOST where
none did. What comes of such a frame later is counted, not announced again: its part has its verdict already.

With the software trigger every command is one part. A frame belongs to the last command before its exposure; commands
that were passed over, or bring nothing in `trigger_timeout_ms`, are LOST parts. Frames that nobody asked for (the
camera keeps a pending trigger from one session to the next) are no parts.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from dataclasses import replace

from edge.capture.aravis.camera import Camera
from edge.capture.aravis.chunks import EncoderChunk
from edge.capture.aravis.library import BufferStatus
from edge.capture.aravis.stream import FrameStream, Received
from edge.capture.connection import CameraLost, ConnectedSource, Connection, Shape
from edge.capture.device_clock import DeviceClock
from edge.capture.frame_ids import FrameOrder
from edge.capture.software_triggers import SoftwareTriggers
from edge.capture.source import Grab, SlotPool, SourceInfo
from edge.errors import SourceError
from edge.messages import FrameStatus, now_ns
from edge.settings_genicam import GigeSource as GigeSettings

RATE_UNKNOWN_HZ = 60.0  # assumed for the ring's size where neither camera nor settings tell
CONTROL_LOOK_NS = 200_000_000
LATE_NS = 1_000_000_000  # least time in which a frame without number may be one that was passed over
_NOTHING = (BufferStatus.UNKNOWN, BufferStatus.CLEARED, BufferStatus.ABORTED, BufferStatus.FILLING)


class GigeConnection(Connection):
    """One session with a camera."""

    def __init__(self, settings: GigeSettings, triggers: SoftwareTriggers | None) -> None:
        """Opens, configures and prepares the receiver. Raises `SourceError`; `SourceAway` where a camera may come."""
        self._settings, self._triggers = settings, triggers
        self._order = FrameOrder(max(LATE_NS, round(2e6 * settings.retention_ms)))
        self._clock = DeviceClock()
        self._counts: Counter[str] = Counter()
        self._ready: deque[Grab] = deque()
        self._last_ns = 0  # trigger of the newest part
        self._heard_ns = self._looked_ns = 0
        self._lost = False
        self._stream: FrameStream | None = None
        self._chunk: EncoderChunk | None = None
        self._camera = Camera(settings)
        try:
            delivery = self._camera.configure()
            self._stream = FrameStream(self._camera, delivery, settings)
            if settings.encoder_chunk is not None:
                self._chunk = EncoderChunk(self._camera, settings.encoder_chunk)
        except BaseException:
            self.close()
            raise
        self.notes = self._stream.notes
        form, self.by_trigger = delivery.wire.frame, not settings.runs_freely
        self.shape = Shape(form, delivery.height, delivery.width)
        size = delivery.height * delivery.width * form.channels
        self._rate_hz = settings.rate_hz or delivery.rate_hz
        self.period_ns = round(1e9 / self._rate_hz) if self._rate_hz and not self.by_trigger else None
        self.info = SourceInfo(
            max_bytes=max(size, delivery.payload_bytes) if delivery.wire.in_place else size,
            max_rate_hz=self._rate_hz or RATE_UNKNOWN_HZ,
            finite=False,
            description=f"{self._camera.name}, {delivery.width} x {delivery.height} {delivery.wire.name}, "
            f"packets of {delivery.packet_bytes} bytes by {self._stream.socket} socket, trigger {settings.trigger}",
        )

    def start(self, pool: SlotPool) -> None:
        """Gives slots to the receiver, starts the camera."""
        assert self._stream is not None
        self._stream.start(pool, self._settings.buffers)
        self._heard_ns = now_ns()
        if self._triggers is not None:
            self._triggers.connect(self._camera)

    def next(self, timeout_s: float) -> Grab | None:
        """The next part. Raises `CameraLost`."""
        assert self._stream is not None
        if not self._ready:
            received = self._stream.pop(timeout_s)
            if received is not None:
                self._heard_ns = now_ns()
                self._take(received)
            if self._triggers is not None:
                self._ready.extend(self.shape.lost(sent_ns) for sent_ns in self._triggers.lost())
            if not self._ready:
                self._look()
        return self._ready.popleft() if self._ready else None

    def close(self) -> None:
        """The slots are free at once, the camera too, unless it is dead: then it takes seconds."""
        if self._stream is not None:
            for grab in self._ready:
                if grab.slot is not None:
                    self._stream.reuse(grab.slot)
            self._ready.clear()
            self._stream.close()
        if self._chunk is not None:
            self._chunk.close()
        if self._triggers is not None:
            self._triggers.disconnect()
        if not self._lost:  # a dead camera would be waited for; giving up control stops a live one too
            self._camera.stop()
        self._camera.close()

    def counters(self) -> dict[str, int]:
        """Parts by what became of them, and the receiver's statistics."""
        assert self._stream is not None
        order = {"frames_late": self._order.late, "ids_restarted": self._order.restarts}
        return {**self._counts, **order, **self._stream.statistics()}

    def _look(self) -> None:
        """Notices that the camera is gone. Raises `CameraLost`."""
        now = now_ns()
        if now - self._looked_ns < CONTROL_LOOK_NS:
            return
        self._looked_ns = now
        silent_s = (now - self._heard_ns) / 1e9
        if not self._camera.controlled:
            self._lost = True
            raise CameraLost(
                f"camera {self._camera.address} is lost: it does not answer any more, or was taken over; are power and "
                "network cable in order?"
            )
        if self.stalled(silent_s, self._settings.stall_s):
            self._lost = True
            raise CameraLost(
                f"camera {self._camera.address}: no frame for {silent_s:.1f} s, though it should run freely; is it on, "
                "and do its packets get here (firewall, packet_size_bytes above a switch's MTU)?"
            )

    def _take(self, received: Received) -> None:
        """One frame of the receiver's: what is announced for it goes to `_ready`."""
        assert self._stream is not None
        if received.status in _NOTHING:
            self._stream.reuse(received.slot)
            return
        place = self._order.place(received.frame_id, self._heard_ns)
        if place is None:
            self._stream.reuse(received.slot)
            return
        arrival_ns = _monotonic(received.host_ns)
        exposed_ns = self._clock.host_ns(received.device_ns, arrival_ns)
        if not received.host_ns and self.period_ns is not None and self._last_ns:
            exposed_ns = min(exposed_ns, self._last_ns + self.period_ns)  # its leader was lost, and its times with it
        trigger_ns: int | None = exposed_ns
        if self._triggers is not None:
            missed, trigger_ns = self._triggers.claim(exposed_ns)
            self._ready.extend(self.shape.lost(sent_ns) for sent_ns in missed)
        else:
            self._announce_missing(place.missing, exposed_ns)
        if trigger_ns is None:
            self._counts["frames_unasked"] += 1
            self._stream.reuse(received.slot)
            return
        self._last_ns = trigger_ns
        self._ready.append(self._grab(received, place.frame_id, trigger_ns))

    def _announce_missing(self, frame_ids: tuple[int, ...], until_ns: int) -> None:
        """Parts between the newest one and that of `until_ns`, whose frames are not here, evenly spaced in time."""
        assert self._stream is not None
        if not frame_ids:
            return
        under_way = self._stream.under_way()
        step_ns = (until_ns - self._last_ns) // (len(frame_ids) + 1) if self._last_ns else 0
        for back, frame_id in zip(range(len(frame_ids), 0, -1), frame_ids, strict=True):
            partial = frame_id in under_way or 0 in under_way
            status = FrameStatus.INCOMPLETE if partial else FrameStatus.LOST
            self._counts[f"frames_{status.value}"] += 1
            lost = self.shape.lost(until_ns - back * step_ns)
            self._ready.append(replace(lost, camera_frame=frame_id, status=status))

    def _grab(self, received: Received, frame_id: int | None, trigger_ns: int) -> Grab:
        """The part of a frame that is in its turn. Gives the receiver a slot for the one that it uses."""
        assert self._stream is not None
        status = FrameStatus.OK
        if received.status is BufferStatus.SIZE_MISMATCH or not received.matches:
            status = FrameStatus.MISMATCH if received.status is BufferStatus.SUCCESS else FrameStatus.INCOMPLETE
        encoder = None
        if status is FrameStatus.OK:
            self._stream.unpack(received)
            encoder = self._chunk.read(received.buffer) if self._chunk is not None else None
            if not self._stream.refill():
                self._counts["slots_short"] += 1
        else:
            self._stream.reuse(received.slot)
            self._counts[f"frames_{status.value}"] += 1
        return Grab(
            status,
            received.slot if status is FrameStatus.OK else None,
            self.shape.pixel_format,
            self.shape.height,
            self.shape.width,
            trigger_ns,
            camera_frame=frame_id,
            camera_time_ns=received.device_ns or None,
            encoder=encoder,
        )


class GigeSource(ConnectedSource):
    """A GigE Vision camera that is kept connected."""

    def __init__(self, settings: GigeSettings) -> None:
        super().__init__(settings.reconnect_max_s)
        self._settings = settings
        self._said: set[str] = set()
        by_software = settings.trigger == "software"
        self._triggers = SoftwareTriggers(settings.trigger_timeout_ms) if by_software else None

    def software_trigger(self) -> None:
        """Takes one picture: one part, whatever becomes of it. Never waits; safe to call from any thread.

        Raises `SourceError` where the camera is not set to `trigger = "software"`.
        """
        if self._triggers is None:
            raise SourceError(f'trigger = "{self._settings.trigger}": set trigger = "software" to trigger from here')
        self._triggers.fire()

    def close(self) -> None:
        """Gives the camera back."""
        super().close()
        if self._triggers is not None:
            self._triggers.close()
            self._triggers = None

    def _connect(self) -> Connection:
        connection = GigeConnection(self._settings, self._triggers)
        for note in connection.notes:
            if note not in self._said:
                self.log.warning(note)
                self._said.add(note)
        return connection

    def _unseen(self, until_ns: int) -> list[int]:
        """Adds triggers that found no camera."""
        lost = self._triggers.lost() if self._triggers is not None else []
        return super()._unseen(until_ns) + lost


def _monotonic(realtime_ns: int) -> int:
    """CLOCK_REALTIME of a moment ago as CLOCK_MONOTONIC; now where it is not known or the clock was set since."""
    now = now_ns()
    then = realtime_ns + now - time.time_ns()
    return then if realtime_ns and 0 <= now - then < 10_000_000_000 else now
