"""GenICam features of a camera, listed, read and written through Aravis."""

from __future__ import annotations

import ctypes
import difflib
import math
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from edge.capture.aravis.library import Access, AravisError, library, list_items, text
from edge.capture.features import Feature, FeatureSet, Kind, Value
from edge.errors import SourceAway, SourceError

_UNLIMITED = 1e300  # beyond it a bound says nothing


class Features(FeatureSet):
    """The features of one device of Aravis'."""

    def __init__(self, device: int, camera: str) -> None:
        super().__init__(camera)
        self._device = device
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

    def _refused(self, asked: str, allowed: str, error: Exception) -> SourceError:
        if not isinstance(error, AravisError):
            raise error
        if error.away:
            return SourceAway(f"{asked}: the camera does not answer any more ({error})")
        return SourceError(f"{asked}: the camera refuses it ({error}); allowed is {allowed}")

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
