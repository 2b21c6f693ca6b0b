"""From a rejected settings file to sentences: where the fault stands, what is wrong, what is allowed."""

from __future__ import annotations

import difflib
import os
import re
import sys
import types
import typing
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import annotated_types
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings.exceptions import SettingsError as SourceFault

from edge.errors import SettingsError
from edge.toml_lines import KeyPath, key_lines

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PREFIX = "EDGE_"
# Variables that are no settings of a line: folders for shared memory and built engines.
OTHER_VARIABLES = frozenset({"EDGE_SHM_DIR", "EDGE_ENGINE_CACHE"})
OTHER_PREFIX = "EDGE_INSPECT_"

UNITS = {
    "ns": "nanoseconds",
    "us": "microseconds",
    "ms": "milliseconds",
    "s": "seconds",
    "hz": "per second",
    "px": "pixels",
    "mm": "millimetres",
    "counts": "encoder counts",
    "percent": "percent",
    "bytes": "bytes",
    "mb": "megabytes, 10^6 bytes",
    "gb": "gigabytes, 10^9 bytes",
    "days": "days",
}
_UNIT_SUFFIX = re.compile(
    r"_(?:ns|us|ms|s|sec|secs|seconds|millis|milliseconds|min|minutes|h|hours|d|days?|hz|fps|px|pixels?|pct|percent|"
    r"kb|kib|mb|mib|gb|gib|tb|bytes)$"
)
_SYNONYMS = {"fps": "rate", "framerate": "rate", "frame_rate": "rate", "frequency": "rate", "timeout": "deadline"}


def read_toml(path: Path) -> tuple[dict[str, Any], dict[KeyPath, int]]:
    """The data of a TOML file and the lines of its keys. Raises `SettingsError`, with the line of a syntax error."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SettingsError(f"{path}: no such file; `edge config example > {path.name}` writes one") from error
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise SettingsError(f"{path}: cannot read the settings: {error.strerror}") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        at = re.search(r" \(at line (\d+), column (\d+)\)$", str(error))
        line = at.group(1) if at else str(text.count("\n") + 1)
        column = f"{at.group(2)}:" if at else ""
        problem = re.sub(r" \(at .*\)$", "", str(error))
        raise SettingsError(f"{path}:{line}:{column} not valid TOML: {problem}") from error
    except RecursionError as error:
        raise SettingsError(f"{path}: nested too deeply to be a settings file") from error
    return data, key_lines(text.replace("\r\n", "\n"))


@dataclass(frozen=True)
class Origin:
    """Where values came from."""

    file: Path
    data: dict[str, Any]
    lines: dict[KeyPath, int]

    def where(self, path: KeyPath) -> str:
        """`FILE:LINE` of a key (of the table it is missing from), or the variable that set it."""
        words = [str(part) for part in path]
        for length in range(len(path), 0, -1):
            variable = PREFIX + "__".join(words[:length]).upper()
            if variable in {name.upper() for name in os.environ}:
                return variable
        for length in range(len(path), 0, -1):
            if path[:length] in self.lines:
                return f"{self.file}:{self.lines[path[:length]]}"
        return str(self.file)


class Faults:
    """Collects faults and raises them as one `SettingsError`."""

    def __init__(self, root: type[BaseModel], origin: Origin) -> None:
        self._root = root
        self._origin = origin
        self._found: list[tuple[str, str]] = []

    def add(self, path: KeyPath, text: str) -> None:
        """A fault at a key."""
        self._found.append((self._origin.where(path), f"{spell(path)}: {text}"))

    def raise_any(self) -> None:
        """Raises `SettingsError` if there is any fault."""
        if self._found:
            self._found.sort(key=lambda fault: [int(digits) for digits in re.findall(r":(\d+)$", fault[0])])
            raise SettingsError("\n".join(f"{where}: {text}" for where, text in self._found))

    def unknown_variables(self) -> None:
        """Finds EDGE_* variables that name no key."""
        for name in sorted(os.environ):
            if not name.upper().startswith(PREFIX) or name in OTHER_VARIABLES or name.startswith(OTHER_PREFIX):
                continue
            model: Any = self._root
            parts = name[len(PREFIX) :].lower().split("__")
            for number, part in enumerate(parts):
                if not (isinstance(model, type) and issubclass(model, BaseModel)):
                    text = "names a key inside a list or value; give the whole list as JSON"
                elif part not in model.model_fields:
                    text = f"no such key {part!r}{_meant(part, model)}"
                else:
                    model = plain_type(model.model_fields[part].annotation)
                    continue
                key = ".".join(parts[: number + 1])
                self._found.append((name, f"{key}: {text}"))
                break

    def unreadable_variable(self, error: SourceFault) -> None:
        """A variable that holds no JSON where a list or table is needed."""
        field = re.search(r'field "([^"]+)"', str(error))
        name = PREFIX + field.group(1).upper() if field else PREFIX + "*"
        self._found.append((name, "does not parse: a list or a table is given as JSON in one variable"))

    def invalid(self, error: ValidationError) -> None:
        """All faults that the models found."""
        for fault in error.errors(include_url=False):
            path, model, field = self._resolve(fault["loc"])
            self.add(path, _sentence(fault["type"], fault["msg"], fault.get("input"), path, model, field))

    def _resolve(self, loc: tuple[str | int, ...]) -> tuple[KeyPath, Any, FieldInfo | None]:
        """The key path of pydantic's location (without the tags of unions), the model it is in and its field."""
        path: KeyPath = ()
        model: Any = self._root
        field: FieldInfo | None = None
        kind: Any = self._root
        for part in loc:
            members = _members(kind)
            if isinstance(part, int):
                path += (part,)
                continue
            if len(members) > 1 and part in members:
                kind = members[part]
                model, field = kind, None
                continue
            path += (part,)
            model = next(iter(members.values()), None)
            field = model.model_fields.get(part) if model is not None else None
            kind = field.annotation if field is not None else None
        return path, model, field


def spell(path: KeyPath) -> str:
    """A key path as people write it: `cameras[0].source.rate_hz`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def plain_type(annotation: Any) -> Any:
    """The type inside `Annotated`, `list` and `… | None`; a union of several stays as it is."""
    while True:
        origin = typing.get_origin(annotation)
        if origin is typing.Annotated:
            annotation = typing.get_args(annotation)[0]
        elif origin in (typing.Union, types.UnionType):
            rest = [item for item in typing.get_args(annotation) if item is not type(None)]
            if len(rest) != 1:
                return annotation
            annotation = rest[0]
        else:
            return annotation


def allowed(field: FieldInfo) -> str:
    """What a key may hold: choices, or type and range."""
    kind = plain_type(field.annotation)
    prefix = ""
    metadata = list(field.metadata)
    if typing.get_origin(kind) is list:
        prefix, kind = "a list of ", plain_type(typing.get_args(kind)[0])
    metadata += _nested_metadata(field.annotation)
    if typing.get_origin(kind) is Literal:
        return prefix + "one of " + ", ".join(_quote(value) for value in typing.get_args(kind))
    if isinstance(kind, type) and issubclass(kind, Enum):
        return prefix + "one of " + ", ".join(_quote(value) for value in kind)
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    text = prefix + names.get(kind, "a table")
    low, high = "", ""
    for item in metadata:
        if isinstance(item, annotated_types.Ge):
            low = f"from {_number(item.ge)}"
        elif isinstance(item, annotated_types.Gt):
            low = f"above {_number(item.gt)}"
        elif isinstance(item, annotated_types.Le):
            high = f"to {_number(item.le)}"
    return " ".join(part for part in (text, low, high) if part)


def _nested_metadata(annotation: Any) -> list[Any]:
    """Metadata of `Annotated` inside an optional: pydantic merges only the outermost into the field."""
    found: list[Any] = []
    for item in typing.get_args(annotation) if typing.get_origin(annotation) is not Literal else ():
        if typing.get_origin(item) is typing.Annotated:
            for extra in typing.get_args(item)[1:]:
                found += extra.metadata if isinstance(extra, FieldInfo) else [extra]
    return found


def _members(kind: Any) -> dict[str, Any]:
    """The models a value may be, by the tag pydantic puts into locations."""
    kind = plain_type(kind)
    if typing.get_origin(kind) is list:
        kind = plain_type(typing.get_args(kind)[0])
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {kind.__name__: kind}
    found = {}
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        for item in typing.get_args(kind):
            if isinstance(item, type) and issubclass(item, BaseModel):
                tag = typing.get_args(item.model_fields["type"].annotation)[0]
                found[tag] = item
    return found


def _sentence(kind: str, message: str, value: Any, path: KeyPath, model: Any, field: FieldInfo | None) -> str:
    if kind == "extra_forbidden":
        return f"no such key{_meant(str(path[-1]), model)}"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = ", ".join(f'"{tag}"' for tag in _members(field.annotation if field else None))
        given = value.get("type") if isinstance(value, dict) else value
        return f"type {given!r} is not known" * (kind == "union_tag_invalid") + f"; set type to one of {tags}".lstrip(
            "; " if kind != "union_tag_invalid" else ""
        )
    purpose = f" ({field.description})" if field is not None and field.description else ""
    if kind == "missing":
        return f"this key is missing; it holds {allowed(field) if field else 'a value'}{purpose}"
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    shown = f"{value!r:.60}" if not isinstance(value, dict) else "a table"
    return f"{shown} is not allowed; allowed is {allowed(field) if field else message}{purpose}"


def _meant(key: str, model: Any) -> str:
    """A hint which key was meant: another unit of the same thing, a misspelling, or else all keys there are."""
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return ""
    known = list(model.model_fields)
    stem = _stem(key)
    same = [name for name in known if _stem(name) == stem]
    close = same or difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    if close:
        unit = UNITS.get(close[0].rpartition("_")[2])
        return f"; did you mean {close[0]}{f' ({unit})' if unit else ''}?"
    return f"; allowed here: {', '.join(known)}"


def _stem(key: str) -> str:
    key = _SYNONYMS.get(key, key)
    return _UNIT_SUFFIX.sub("", key)


def _number(value: Any) -> str:
    return f"{int(value):_}" if value == int(value) else str(value)


def _quote(value: Any) -> str:
    value = value.value if isinstance(value, Enum) else value
    return f'"{value}"'
