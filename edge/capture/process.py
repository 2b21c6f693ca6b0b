"""The capture process: frames of one camera into shared memory, and word of every part to those who judge it.

For each part, in this order: the frame is complete in its slot, the announcement is in the ring's journal, inference
is told, alert is told. Nobody is ever waited for. A part without a usable frame is announced like any other, with
the reason as its status, so that it gets its verdict (UNJUDGED).

A camera that is not there at the start is waited for; the process is ready and tells so, and its ring is made when the
camera has told the size of its frames.

Parts are numbered in the order in which they pass, by the sequence within this life of the process; or as the PLC
counts them, then a frame is held until it is certain which part it shows (`edge.capture.numbering`).
"""

from __future__ import annotations

import time
from typing import cast

from edge.capture.numbering import ByPlc, Held, InOrder, Numbered, Numbering
from edge.capture.opening import Opening
from edge.capture.source import EndOfSource, Grab, SlotPool, Source, SourceInfo
from edge.capture.sources import open_source
from edge.capture.truth import TruthFile
from edge.frames import RingSlot, RingWriter, ring_path
from edge.messages import FrameId, FrameRef, FrameStatus, encode, host_id, now_ns, origin
from edge.process import Process
from edge.settings import CameraSettings, Settings
from edge.transport import Outbox

TURN_S = 0.2  # longest wait for a frame in one turn
PEER_WAIT_S = 1.0


class CaptureProcess(Process):
    """`edge capture line.toml --camera NAME`."""

    def __init__(self, settings: Settings, camera: CameraSettings) -> None:
        super().__init__(f"capture-{camera.name}", settings)
        self.camera = camera
        self._host_id = host_id()
        self._deadline_ns = round(settings.deadline_ms(self.camera) * 1e6)
        self._sequence = 0
        self._source: Source | None = None
        self._opening: Opening | None = None  # while the camera is not open
        self._ring: RingWriter | None = None
        self._alert: Outbox | None = None
        self._infer: Outbox | None = None
        self._truth: TruthFile | None = None
        self._numbers: Numbering = InOrder()
        self._fault = self._camera_fault = ""  # what health shows; of the camera alone
        self._looked = 0.0
        self._worst_behind_ns = 0
        self._failed_said, self._failed_unsaid = float("-inf"), 0

    def setup(self) -> None:
        """Connects to alert and inference, opens the source, makes (or takes over) the ring."""
        # Alert's return is worth waiting for in the queue; a frame is not, by then.
        self._alert = Outbox(self.endpoints.alert_in, hold=True)
        self._infer = Outbox(self.endpoints.infer_in)
        self.progress(f"opening camera {self.camera.name}")
        self._source = open_source(self.camera.source)
        if self.camera.trigger.numbered_by != "frame":
            by_software = getattr(self.camera.source, "trigger", None) == "software"
            fire = self._source.software_trigger if by_software else None
            self._numbers = ByPlc(self.camera.trigger, self.endpoints.publisher("plc"), self.settings.line.name, fire)
        self._opening = Opening(self._source)
        info = self._opening.first()
        if info is not None:
            self._begin(info)
        else:
            self._wait_for_camera()

    def _begin(self, info: SourceInfo) -> None:
        """The camera is open: frames may come."""
        assert self._source is not None
        assert self._infer is not None
        self._opening = None
        self.log.info("camera is open", camera=self.camera.name, source=info.description)
        slots = self.settings.ring_slots(self.camera, info.max_rate_hz)
        path = ring_path(self.settings.line.name, self.camera.name)
        self._ring = RingWriter.create(path, slots, info.max_bytes)
        self.gauges["ring_slots"] = slots
        if not self._infer.wait_for_peer(PEER_WAIT_S):
            self.log.warning("inference is not there yet; parts are UNJUDGED until it is")
        truth_file = getattr(self.camera.source, "truth_file", None)
        if truth_file is not None:
            self._truth = TruthFile(truth_file)
        self._source.start(cast(SlotPool, self._ring))  # it takes back only slots of its own kind
        if self._fault:
            self._fault, self.state = "", "running"

    def _wait_for_camera(self) -> None:
        """Says that the camera is away, where that is news."""
        assert self._opening is not None
        self.counters["source_connections_failed"] = self._opening.failures
        fault = self._opening.fault
        if fault != self._fault:
            self.counters["source_faults"] += not self._fault
            self.fault(fault)
            self._fault = fault
            self.state = f"degraded: {self.last_fault}"[:1024]

    def step(self) -> bool | None:
        """Waits for one part and announces it; or for the camera, where it is not there yet."""
        assert self._source is not None
        if self._opening is not None:
            info = self._opening.wait(TURN_S)
            if info is None:
                self._wait_for_camera()
                return None
            self._begin(info)
        try:
            grab = self._source.next(self._numbers.turn_s)
        except EndOfSource:
            self._announce_all([*self._numbers.turn(now_ns()), *self._numbers.finish()])
            self._look()
            self.log.info("the source has ended", parts=self._sequence)
            return False
        if grab is not None:
            self._numbers.take(self._hold(grab), now_ns())
        self._announce_all(self._numbers.turn(now_ns()))
        if time.monotonic() - self._looked > 0.5:
            self._look()
        return None

    def reload(self) -> None:
        """Trigger and frame are in step again, says `edge realign`: judge what comes from now on."""
        self._numbers.realign(now_ns())
        self.log.info("trigger and frame are taken to be in step from now on", camera=self.camera.name)

    def teardown(self) -> None:
        """Announces what is held, closes the camera. Frames in the ring stay readable for the parts in flight."""
        if self._ring is not None:
            self._announce_all(self._numbers.finish())
        self._numbers.close()
        if self._opening is not None:
            self._opening.cancel()
        if self._source is not None:
            self._source.close()
        for outbox in (self._alert, self._infer):
            if outbox is not None:
                outbox.close()
        if self._truth is not None:
            self._truth.close()
        if self._ring is not None:
            self._ring.close()

    def _hold(self, grab: Grab) -> Held:
        """The frame is complete: readers may use its slot, until the ring has gone round."""
        assert self._ring is not None
        if grab.slot is None:
            return Held(grab)
        assert isinstance(grab.slot, RingSlot)
        return Held(grab, grab.slot.index, self._ring.commit(grab.slot))

    def _announce_all(self, numbered: list[Numbered]) -> None:
        for item in numbered:
            self._announce(item.held, item.part)

    def _announce(self, held: Held, part: int | None) -> None:
        assert self._ring is not None
        assert self._alert is not None
        assert self._infer is not None
        grab, sequence = held.grab, self._sequence
        self._sequence += 1
        now = now_ns()
        behind = max(0, now - grab.trigger_ns)
        frame = FrameRef(
            id=FrameId(
                line=self.settings.line.name, camera=self.camera.name, epoch=self._ring.epoch, sequence=sequence
            ),
            part=sequence if part is None else part,
            trigger_ns=grab.trigger_ns,
            host=self._host_id,
            age_ns=behind,
            deadline_ns=self._deadline_ns,
            status=grab.status,
            pixel_format=grab.pixel_format,
            height=grab.height,
            width=grab.width,
            ring=self._ring.path.name,
            slot=held.slot,
            generation=held.generation,
            camera_frame=grab.camera_frame,
            camera_time_ns=grab.camera_time_ns,
            encoder=grab.encoder,
            origin=None if grab.origin is None else origin(grab.origin),
        )
        message = encode(frame)
        self._ring.journal_append(message)
        # Inference first: it is on the way of the verdict, alert only has to know before the deadline.
        if grab.slot is not None and grab.status is FrameStatus.OK:
            height, width, channels = frame.shape
            pixels = grab.slot.buffer[: height * width * channels] if self.endpoints.infer_in.remote else None
            if not self._infer.send(message, pixels):
                self.counters["queue_full_infer"] += 1
        if not self._alert.send(message):
            self.counters["queue_full_alert"] += 1  # it will find the part in the journal
        self.counters["frames"] += 1
        if grab.status is not FrameStatus.OK:
            self._failed(frame)
        self._worst_behind_ns = max(self._worst_behind_ns, behind)
        if self._truth is not None and grab.truth is not None:
            fault = self._truth.write({"epoch": frame.id.epoch, "sequence": sequence, "part": frame.part, **grab.truth})
            if fault:
                self.fault(fault)
                self._truth = None

    def _failed(self, frame: FrameRef) -> None:
        """Counts a part without a usable frame; logs one a second, for a log that fills up would hold up the camera."""
        self.counters[f"failed_{frame.status.value}"] += 1
        self._failed_unsaid += 1
        now = time.monotonic()
        if now - self._failed_said > 1.0:
            self.log.warning(
                "a part has no usable frame",
                sequence=frame.id.sequence,
                status=frame.status.value,
                origin=frame.origin,
                failed_since_last=self._failed_unsaid,
            )
            self._failed_said, self._failed_unsaid = now, 0

    def _look(self) -> None:
        """Brings state, counters and gauges up to date."""
        assert self._source is not None
        self._looked = time.monotonic()
        self.gauges["behind_ms"] = self._worst_behind_ns / 1e6
        self._worst_behind_ns = 0
        fault, counters = self._source.health()
        for name, value in counters.items():
            self.counters[f"source_{name}"] = value
        for name, value in self._numbers.counters().items():
            self.counters[f"trigger_{name}"] = value
        self.gauges.update(self._numbers.gauges())
        self._camera_fault, before = fault, self._camera_fault
        fault = fault or self._numbers.fault
        if fault == self._fault:
            return
        if fault:
            self.counters["source_faults"] += not self._fault
            self.fault(fault)
        else:
            back = "the camera is back" if before else "trigger and frame agree again"
            self.log.info(back, camera=self.camera.name)
        self._fault = fault
        self.state = f"degraded: {fault}"[:1024] if fault else "running"
