"""When the ejector must be on, so that it hits the parts it is meant for: see `schedule`."""

from edge.alert.rejects.lateness import Histogram
from edge.alert.rejects.schedule import Added, Counts, Event, Missed, PulseOff, PulseOn, RejectSchedule, Swept
from edge.tracking.belt import Belt, EncoderReading

__all__ = [
    "Added",
    "Belt",
    "Counts",
    "EncoderReading",
    "Event",
    "Histogram",
    "Missed",
    "PulseOff",
    "PulseOn",
    "RejectSchedule",
    "Swept",
]
