"""GenICam features of a camera: set with a check before and a look afterwards, whatever library reaches the camera.

A camera clips, rounds or ignores values without a word, and libraries pass on what they are given. So a value is
checked against the camera's own range, step or choices before it is written, and read back after. What is wrong is said
with the feature's name, the value and what is allowed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum

from edge.errors import SourceError

Value = bool | int | float | str
FLOAT_TOLERANCE = 0.01  # cameras round times and gains to their own steps, which few of them tell


class Kind(str, Enum):
    """What a feature holds."""

    BOOLEAN = "boolean"
    INTEGER = "integer"
    FLOAT = "float"
    ENUMERATION = "enumeration"
    STRING = "string"
    COMMAND = "command"
    OTHER = "other"


@dataclass(frozen=True)
class Feature:
    """A feature as it is now. Bounds are None where there are none; `value` is None where it cannot be read."""

    name: str
    kind: Kind
    access: str  # "read", "write", "read and write", or "not now" (not available or locked at present)
    value: Value | None
    minimum: float | None = None
    maximum: float | None = None
    increment: float | None = None
    unit: str = ""
    choices: tuple[str, ...] = ()
    category: str = ""
    description: str = ""

    @property
    def allowed(self) -> str:
        """What it may hold, for people."""
        if self.kind is Kind.ENUMERATION:
            return "one of " + ", ".join(self.choices)
        if self.kind is Kind.BOOLEAN:
            return "true or false"
        if self.kind is Kind.COMMAND:
            return "true, which runs it"
        if self.kind not in (Kind.INTEGER, Kind.FLOAT):
            return "text"
        text = "a whole number" if self.kind is Kind.INTEGER else "a number"
        if self.minimum is not None:
            text += f" from {_number(self.minimum)}"
        if self.maximum is not None:
            text += f" to {_number(self.maximum)}"
        if self.increment is not None and (self.kind is Kind.FLOAT or self.increment != 1):
            text += f" in steps of {_number(self.increment)}"
        return text + (f" {self.unit}" if self.unit else "")


class FeatureSet(ABC):
    """The features of one open camera. Calls wait for it: milliseconds, seconds where it is dead."""

    def __init__(self, camera: str) -> None:
        self._camera = camera  # its name, for people

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether the camera has the feature, and it is available in the present settings."""

    @abstractmethod
    def describe(self, name: str, category: str = "") -> Feature:
        """The feature as it is now. Raises `SourceError` where there is none of that name."""

    @abstractmethod
    def _get(self, name: str, kind: Kind) -> Value:
        """The value now. Raises what `_refused` understands."""

    @abstractmethod
    def _put(self, name: str, kind: Kind, value: Value) -> None:
        """Writes a value of the kind's type. Raises what `_refused` understands."""

    @abstractmethod
    def _refused(self, asked: str, allowed: str, error: Exception) -> SourceError:
        """What to tell of a value that was allowed and yet failed; raises `error` itself where it is a bug."""

    def first(self, *names: str) -> str | None:
        """The first of these that the camera has: features were renamed between versions of the naming convention."""
        return next((name for name in names if self.has(name)), None)

    def get(self, name: str) -> Value | None:
        """The value now. Raises `SourceError` where there is no such feature."""
        return self.describe(name).value

    def set(self, name: str, value: Value) -> Value:
        """Checks, writes and reads back. Returns what the camera has made of it.

        Raises `SourceError` that names feature, value and what is allowed.
        """
        feature = self.describe(name)
        asked = f"{self._camera}: {name} = {_shown(value)}"
        if feature.access == "read" and feature.value is not None and _checked(feature, value) == feature.value:
            return feature.value
        if feature.access in ("read", "not now") or feature.kind is Kind.OTHER:
            why = "can only be read" if feature.access == "read" else "cannot be set in the camera's present settings"
            raise SourceError(f"{asked}: this feature {why}; leave it out, or set what locks it first")
        wanted = _checked(feature, value)
        if wanted is None:
            raise SourceError(f"{asked} is not allowed; allowed is {feature.allowed}")
        try:
            self._put(name, feature.kind, wanted)
            if feature.kind is Kind.COMMAND or feature.value is None:
                return wanted
            got = self._get(name, feature.kind)
        except Exception as error:
            raise self._refused(asked, feature.allowed, error) from error
        if not _same(wanted, got, feature.increment or 0.0):
            raise SourceError(
                f"{asked}: the camera made {_shown(got)} of it; allowed is {feature.allowed}, and other settings may "
                "narrow that"
            )
        return got


def _checked(feature: Feature, value: Value) -> Value | None:
    """The value in the feature's type, or None where it is not allowed."""
    if feature.kind is Kind.BOOLEAN:
        return value if isinstance(value, bool) else None
    if feature.kind is Kind.COMMAND:
        return True if value is True else None
    if feature.kind is Kind.ENUMERATION:
        return value if value in feature.choices else None
    if feature.kind is Kind.STRING:
        return value if isinstance(value, str) else None
    if isinstance(value, bool | str):
        return None
    low, high, step = feature.minimum, feature.maximum, feature.increment
    if (low is not None and value < low) or (high is not None and value > high):
        return None
    if feature.kind is Kind.FLOAT:
        return float(value)
    if value != int(value) or (step is not None and (int(value) - int(low or 0)) % int(step)):
        return None
    return int(value)


def _same(wanted: Value, got: Value, step: float) -> bool:
    if isinstance(wanted, float) and isinstance(got, float):
        return abs(wanted - got) <= max(step, FLOAT_TOLERANCE * abs(wanted))
    return wanted == got


def _shown(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else _number(value)


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else f"{value:g}"
