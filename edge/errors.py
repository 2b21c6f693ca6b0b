"""Errors of the running line, below `pipelines.errors.InspectError`.

InspectError
├── SettingsError             line.toml or an EDGE_* variable: file, line, key, what is allowed
├── MessageError              bytes from the wire that are no valid message
├── RingError                 the frame ring in shared memory
│   ├── RingInUse             a live process already writes this camera's ring
│   ├── RingMissing           no ring of that name (capture is not running yet)
│   ├── SharedMemoryTooSmall  shared memory cannot hold the ring; names the exact fix
│   └── TornFrame             the slot was overwritten before or while it was used
├── TransportError            a socket that cannot be bound or a path that is too long
├── LineInUse                 another live process of this line plays the same part
├── SourceError               a camera, folder or file that cannot be opened or read
│   └── SourceAway            a camera that is not there now, or is another's: it may come by itself
├── LedgerError               the verdict ledger cannot be opened, read or written
├── PlcError                  a PLC that cannot be reached, or refuses
│   └── PlcTimeout            a PLC that did not answer in time
└── LineNotRunning            a command needs a running line and found none
"""

from pipelines.errors import InspectError


class SettingsError(InspectError):
    """line.toml or an EDGE_* variable holds a key or value that is not allowed."""


class MessageError(InspectError):
    """Bytes from the wire are not a valid message of this version."""


class RingError(InspectError):
    """The frame ring cannot be created, opened or used."""


class RingInUse(RingError):
    """A live process already writes this camera's ring."""


class RingMissing(RingError):
    """There is no ring of that name: the camera's capture process has not created it yet."""


class SharedMemoryTooSmall(RingError):
    """Shared memory cannot hold the ring."""


class TornFrame(RingError):
    """The slot was overwritten before or while it was used."""


class TransportError(InspectError):
    """A socket cannot be bound or connected."""


class LineInUse(InspectError):
    """Another live process of a line with this name already plays the same part."""


class SourceError(InspectError):
    """A camera, folder or file cannot be opened or read."""


class SourceAway(SourceError):
    """A camera is not there now, or another program has it: worth another attempt later."""


class LedgerError(InspectError):
    """The verdict ledger cannot be opened, read or written."""


class PlcError(InspectError):
    """A PLC cannot be reached, refuses, or answers nonsense."""


class PlcTimeout(PlcError):
    """A PLC did not answer in time: whether it took what was sent is not known."""


class LineNotRunning(InspectError):
    """A command needs a running line and found none."""
