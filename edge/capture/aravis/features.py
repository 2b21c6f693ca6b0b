"""GenICam features of an open camera: listed, read, and set with a check before and a look afterwards.

A camera clips, rounds or ignores values without a word, and Aravis passes on what it is given. So a value is checked
against the camera's own range, step or choices before it is written, and read back after. What is wrong is said with
the feature's name, the value and what is allowed.
"""

from __future__ import annotations

import ctypes
import difflib
import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from typing import Any

from edge.capture.aravis.library import Access, AravisError, library, list_items, text
from edge.errors import SourceAway, SourceError

Value = bool | int | float | str
FLOAT_TOLERANCE = 0.01  # cameras round times and gains to their own steps, which few of them tell
_UNLIMITED = 1e300  # beyond it a bound says nothing


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


class Features:
    """The features of one device. Calls wait for the camera: milliseconds, seconds where it is dead."""

    def __init__(self, device: int, camera: str) -> None:
        self._device, self._camera = device, camera
        self._arv = library()
        arv = self._arv
        # Most special first: an enumeration also has the interface of an integer.
        self._kinds = (
            (arv.gc_enumeration_get_type(), Kind.ENUMERATION),
            (arv.gc_command_get_type(), Kind.COMMAND),
            (arv.gc_boolean_get_type(), Kind.BOOLEAN),
            (arv.gc_integer_get_type(), Kind.INTEGER),
            (arv.gc_float_get_type(), Kind.FLOAT),
            (arv.gc_string_get_type(), Kind.STRING),
        )

    def names(self) -> Iterator[tuple[str, str]]:
        """Category and name of every feature, in the camera's order."""
        genicam = self._arv.device_get_genicam(self._device)
        seen: set[str] = set()

        def walk(name: str, category: str) -> Iterator[tuple[str, str]]:
            node = self._arv.gc_get_node(genicam, name.encode())
            if node is None or name in seen:
                return
            seen.add(name)
            if not self._arv.is_a(node, self._arv.gc_category_get_type()):
                yield category, name
                return
            for item in list_items(self._arv.gc_category_get_features(node)):
                yield from walk(ctypes.string_at(item).decode(), name if name != "Root" else category)

        yield from walk("Root", "")

    def has(self, name: str) -> bool:
        """Whether the camera has the feature, and it is available in the present settings."""
        if self._arv.device_get_feature(self._device, name.encode()) is None:
            return False
        try:
            return bool(self._arv.device_is_feature_available(self._device, name.encode()))
        except AravisError:
            return False

    def first(self, *names: str) -> str | None:
        """The first of these that the camera has: features were renamed between versions of the naming convention."""
        return next((name for name in names if self.has(name)), None)

    def describe(self, name: str, category: str = "") -> Feature:
        """The feature as it is now. Raises `SourceError` where there is none of that name."""
        node = self._arv.device_get_feature(self._device, name.encode())
        if node is None:
            close = difflib.get_close_matches(name, [known for _, known in self.names()], n=1, cutoff=0.6)
            hint = f"did you mean {close[0]}? " if close else ""
            raise SourceError(f"{self._camera}: there is no feature {name}; {hint}`edge camera features` lists them")
        kind = next((kind for type_id, kind in self._kinds if self._arv.is_a(node, type_id)), Kind.OTHER)
        facts: dict[str, Any] = {"category": category}
        described = self._arv.gc_feature_node_get_description(node) or self._arv.gc_feature_node_get_tooltip(node)
        facts["description"] = " ".join(text(described).split())
        access = Access(self._arv.device_get_feature_access_mode(self._device, name.encode()))
        if not self.has(name):
            return Feature(name, kind, "not now", None, **facts)
        facts |= self._limits(name, kind, node)
        value: Value | None = None
        if kind not in (Kind.COMMAND, Kind.OTHER):
            with suppress(AravisError):  # what can only be written
                value = self._get(name, kind)
        # Aravis 0.8.26 calls write-only what can be read as well, so the attempt decides.
        words = "write" if value is None else "read and write"
        return Feature(name, kind, "read" if access is Access.READ_ONLY else words, value, **facts)

    def get(self, name: str) -> Value | None:
        """The value now. Raises `SourceError` where there is no such feature."""
        return self.describe(name).value

    def set(self, name: str, value: Value) -> Value:
        """Checks, writes and reads back. Returns what the camera has made of it.

        Raises `SourceError` that names feature, value and what is allowed.
        """
        feature = self.describe(name)
        asked = f"{self._camera}: {name} = {_shown(value)}"
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
        except AravisError as error:
            if error.away:
                raise SourceAway(f"{asked}: the camera does not answer any more ({error})") from error
            raise SourceError(f"{asked}: the camera refuses it ({error}); allowed is {feature.allowed}") from error
        if not _same(wanted, got, feature.increment or 0.0):
            raise SourceError(
                f"{asked}: the camera made {_shown(got)} of it; allowed is {feature.allowed}, and other settings may "
                "narrow that"
            )
        return got

    def _limits(self, name: str, kind: Kind, node: int) -> dict[str, Any]:
        if kind is Kind.ENUMERATION:
            return {"choices": self._choices(name)}
        if kind not in (Kind.INTEGER, Kind.FLOAT):
            return {}
        number: Any = ctypes.c_int64 if kind is Kind.INTEGER else ctypes.c_double
        low, high = number(), number()
        limits: dict[str, Any] = {"unit": text(getattr(self._arv, f"gc_{kind.value}_get_unit")(node))}
        with suppress(AravisError):  # a constant has no bounds
            getattr(self._arv, f"device_get_{kind.value}_feature_bounds")(
                self._device, name.encode(), ctypes.byref(low), ctypes.byref(high)
            )
            plausible = 2**63 - 1 if kind is Kind.INTEGER else _UNLIMITED
            limits["minimum"] = low.value if abs(low.value) < plausible else None
            limits["maximum"] = high.value if abs(high.value) < plausible else None
        with suppress(AravisError):
            step = getattr(self._arv, f"device_get_{kind.value}_feature_increment")(self._device, name.encode())
            # Without a step, Aravis tells the least number there is.
            limits["increment"] = step if step > 1e-12 and math.isfinite(step) else None
        return limits

    def _choices(self, name: str) -> tuple[str, ...]:
        count = ctypes.c_uint()
        found = self._arv.device_dup_available_enumeration_feature_values_as_strings(
            self._device, name.encode(), ctypes.byref(count)
        )
        if not found:
            return ()
        names = tuple(text(found[number]) for number in range(count.value))
        self._arv.free(found)
        return names

    def _get(self, name: str, kind: Kind) -> Value:
        if kind in (Kind.ENUMERATION, Kind.STRING):
            return text(self._arv.device_get_string_feature_value(self._device, name.encode()))
        value: Value = getattr(self._arv, f"device_get_{kind.value}_feature_value")(self._device, name.encode())
        return bool(value) if kind is Kind.BOOLEAN else value

    def _put(self, name: str, kind: Kind, value: Value) -> None:
        if kind is Kind.COMMAND:
            self._arv.device_execute_command(self._device, name.encode())
        elif kind in (Kind.ENUMERATION, Kind.STRING):
            self._arv.device_set_string_feature_value(self._device, name.encode(), str(value).encode())
        else:
            getattr(self._arv, f"device_set_{kind.value}_feature_value")(self._device, name.encode(), value)


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
