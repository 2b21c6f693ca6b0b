"""GenICam features of a camera behind a GenTL producer, through the reference implementation of GenApi."""

from __future__ import annotations

from typing import Any

from edge.capture.features import Feature, FeatureSet, Kind, Value
from edge.errors import SourceError

_KINDS = {  # by the class of the node
    "IBoolean": Kind.BOOLEAN,
    "ICommand": Kind.COMMAND,
    "IEnumeration": Kind.ENUMERATION,
    "IFloat": Kind.FLOAT,
    "IInteger": Kind.INTEGER,
    "IString": Kind.STRING,
}


class GentlFeatures(FeatureSet):
    """The features of one node map (`genicam.genapi.NodeMap`)."""

    def __init__(self, nodes: Any, camera: str) -> None:
        from genicam import genapi

        super().__init__(camera)
        self._nodes, self._genapi = nodes, genapi

    def has(self, name: str) -> bool:
        """Whether the camera has the feature, and it is available in the present settings."""
        return bool(self._nodes.has_node(name)) and bool(self._genapi.is_available(self._nodes.get_node(name)))

    def describe(self, name: str, category: str = "") -> Feature:
        """The feature as it is now. Raises `SourceError` where there is none of that name."""
        if not self._nodes.has_node(name):
            raise SourceError(f"{self._camera}: there is no feature {name}; the camera's manual lists them")
        node = self._nodes.get_node(name)
        kind = _KINDS.get(type(node).__name__, Kind.OTHER)
        if not self._genapi.is_available(node):
            return Feature(name, kind, "not now", None, category=category)
        readable, writable = self._genapi.is_readable(node), self._genapi.is_writable(node)
        facts: dict[str, Any] = {"category": category}
        if kind in (Kind.INTEGER, Kind.FLOAT):
            facts |= {"minimum": node.min, "maximum": node.max, "unit": node.unit or ""}
            stepped = kind is Kind.INTEGER or node.has_inc()
            facts["increment"] = node.inc if stepped else None
        elif kind is Kind.ENUMERATION:
            facts["choices"] = tuple(entry.symbolic for entry in node.entries if self._genapi.is_available(entry.node))
        value = self._get(name, kind) if readable and kind not in (Kind.COMMAND, Kind.OTHER) else None
        access = "read and write" if readable and writable else "write" if writable else "read"
        return Feature(name, kind, access, value, **facts)

    def _get(self, name: str, kind: Kind) -> Value:
        value: Value = self._nodes.get_node(name).value
        return value

    def _put(self, name: str, kind: Kind, value: Value) -> None:
        node = self._nodes.get_node(name)
        if kind is Kind.COMMAND:
            node.execute()
        else:
            node.value = value

    def _refused(self, asked: str, allowed: str, error: Exception) -> SourceError:
        if not isinstance(error, self._genapi.GenericException):
            raise error
        return SourceError(f"{asked}: the camera refuses it ({error}); allowed is {allowed}")
