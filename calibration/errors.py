"""Errors of offline work, below `pipelines.errors.InspectError`.

InspectError
└── CalibrationError          offline work that cannot start or go on
    ├── DataError             images or labels that cannot be used for the work asked
    │   └── TooFewImages      the images cannot promise the false-reject rate asked
    ├── MetricError           a metric that is not defined for the data given
    └── FitError              a fit that cannot start, go on, or has failed
"""

from pipelines.errors import InspectError


class CalibrationError(InspectError):
    """Offline work cannot start or go on."""


class DataError(CalibrationError):
    """Images or labels cannot be used for the work asked."""


class TooFewImages(DataError):
    """The images cannot promise the false-reject rate asked."""


class MetricError(CalibrationError):
    """A metric is not defined for the data given, such as an AUROC without defects."""


class FitError(CalibrationError):
    """A fit cannot start, cannot go on, or has failed."""
