"""Every error of the project that a user can cause or cure.

    InspectError                  one sentence that names the file, key or device, and the fix
    ├── ImageError                an image file that cannot be used
    ├── WeightsError              a checkpoint that is damaged, unknown or does not fit
    ├── BundleError               a bundle that is damaged, of another version or incomplete
    └── EngineError               an engine that cannot be built, loaded or run
        └── ParityError           an engine that does not reproduce the bundle's reference scores

`edge.errors` and `calibration.errors` add their own branches below `InspectError`.
"""


class InspectError(Exception):
    """Base of all errors meant for the user: its text is shown as it is, without a traceback."""


class ImageError(InspectError):
    """An image file is missing, does not decode, or has a shape or depth that cannot be used."""


class WeightsError(InspectError):
    """A checkpoint is damaged, unknown, or does not fit the encoder or head it was given for."""


class BundleError(InspectError):
    """A bundle is damaged, incomplete, or was written by another version."""


class EngineError(InspectError):
    """An engine cannot be built, loaded or run on this machine."""


class ParityError(EngineError):
    """An engine does not reproduce the bundle's reference scores, so it may not judge a part."""
