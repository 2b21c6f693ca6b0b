"""The example settings file, written from the models: it cannot disagree with them."""

from __future__ import annotations

import textwrap
import typing
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from edge.settings import Settings
from edge.settings_faults import allowed, plain_type
from edge.settings_sources import FolderSource, GentlSource, GigeSource, OpencvSource, SimulatedSource

# Values for keys without a default, and for keys that a newcomer will want to set. All others stay comments.
_SHOWN: dict[str, Any] = {
    "line.name": "line-1",
    "cameras.name": "top",
    "cameras.source.type": "simulated",
    "cameras.source.rate_hz": 10.0,
    "inference.bundle": "bundles/tile",
    "alert.deadline_ms": 500.0,
    "alert.unjudged": "reject",
}
_SAMPLES: dict[str, Any] = {
    "path": "images",
    "url": "rtsp://camera.example/stream1",
    "device": "/dev/video0",
    "file": "video.mp4",
    "dir": "archive",
    "data_dir": "data",
    "runtime_dir": "run",
    "keys_dir": "keys",
    "truth_file": "truth.jsonl",
    "bundle": "bundles/tile",
    "group": "station-1",
    "step_counts": 500,
    "endpoint": "tcp://192.0.2.10:5555",
    "deadline_ms": 300.0,
    "ring_slots": 16,
    "rate_hz": 25.0,
    "width_px": 1280,
    "height_px": 960,
    "fourcc": "MJPG",
    "address": "192.168.10.20",
    "serial": "24012345",
    "exposure_us": 2000.0,
    "gain": 6.0,
    "packet_size_bytes": 9000,
    "packet_delay_ns": 5000,
    "receive_buffer_mb": 16.0,
    "encoder_chunk": "EncoderValue",
    "host": "192.168.10.30",
    "eject_coil": 0,
    "safe_eject": True,
    "name": "ads",
    "OpcuaAdapterSettings.url": "opc.tcp://192.168.10.30:4840",
    "user": "edge",
    "password_file": "plc.password",
    "password_env": "PLC_PASSWORD",
    "certificate_file": "client.pem",
    "key_file": "client.key",
    "ca_file": "ca.pem",
    "application_uri": "urn:plant:line-1",
    "outputs_db": 10,
    "inputs_db": 11,
    "port": 8883,
    "client_id": "line-1",
    "prefix": "plant/line-1",
    "node": "line-1",
    "ready": 5,
    "heartbeat": 6,
    "passed": 13,
    "rejected": 19,
    "valid": 26,
    "fault": 16,
    "eject": 20,
    "run": 21,
    "trigger": 12,
    "delay_ms": 1500.0,
    "distance_mm": 750.0,
    "belt_mm_s": 500.0,
    "encoder_counts": 3000,
    "counts_per_mm": 4.0,
    "producer": "/opt/vendor/lib/producer.cti",
}
_WIDTH = 100


def example() -> str:
    """A settings file that shows every key with its description, what it may hold and its default."""
    lines = [
        "# Settings of one line. Keys that are comments show their defaults, or a sample where there is none.",
        "# A variable such as EDGE_ALERT__DEADLINE_MS=300 overrides the key deadline_ms of [alert].",
        "# Relative paths start at the folder of this file. Check it with: edge config check FILE",
        "",
    ]
    for name, field in Settings.model_fields.items():
        model = plain_type(field.annotation)
        if name == "cameras":
            lines += _cameras(plain_type(typing.get_args(model)[0]))
        elif name == "plc":
            lines += _plc(model)
        else:
            lines += [*_comment(_purpose(model)), f"[{name}]", *_keys(name, model), ""]
    return "\n".join(lines).rstrip() + "\n"


def _cameras(model: type[BaseModel]) -> list[str]:
    lines = [*_comment("One table per camera."), "[[cameras]]", *_keys("cameras", model), ""]
    lines += [*_comment(_purpose(SimulatedSource)), "[cameras.source]", *_keys("cameras.source", SimulatedSource), ""]
    for other in (FolderSource, OpencvSource, GigeSource, GentlSource):
        lines += _as_comments(other, "[cameras.source]", "Or instead: ")
    trigger = plain_type(model.model_fields["trigger"].annotation)
    lines += [*_comment(_purpose(trigger)), "[cameras.trigger]", *_keys("cameras.trigger", trigger), ""]
    return lines


def _plc(model: type[BaseModel]) -> list[str]:
    """All of it as comments: most lines begin without a PLC."""
    adapters = typing.get_args(plain_type(model.model_fields["adapter"].annotation))
    lines = _as_comments(model, "[plc]")
    for number, adapter in enumerate(adapters):
        lines += _as_comments(adapter, "[plc.adapter]", "Or instead: " * (number > 0))
    return lines + _as_comments(plain_type(model.model_fields["eject"].annotation), "[plc.eject]")


def _as_comments(model: type[BaseModel], header: str, before: str = "") -> list[str]:
    lines = [*_comment(before + _purpose(model)), f"# {header}"]
    return [*lines, *(line if line.startswith("#") else f"# {line}" for line in _keys("", model) if line), ""]


def _keys(section: str, model: type[BaseModel]) -> Iterator[str]:
    for name, field in model.model_fields.items():
        if _is_table(field):
            continue
        holds = allowed(field)
        holds = "" if name == "type" else f" {holds[0].upper()}{holds[1:]}."
        yield from _comment(f"{field.description}{holds}{_default(field)}")
        shown = f"{section}.{name}"
        if shown in _SHOWN:
            yield f"{name} = {_toml(_SHOWN[shown])}"
        elif name == "type":
            yield f"{name} = {_toml(typing.get_args(field.annotation)[0])}"
        elif field.is_required() or field.default is None:
            yield f"# {name} = {_toml(_sample(name, field, model))}"
        else:
            yield f"# {name} = {_toml(field.default)}"


def _is_table(field: FieldInfo) -> bool:
    """Whether the key is a table of its own."""
    kind = plain_type(field.annotation)
    return field.discriminator is not None or (isinstance(kind, type) and issubclass(kind, BaseModel))


def _sample(name: str, field: FieldInfo, model: type[BaseModel]) -> Any:
    """A value that the key may hold, for a key without a default."""
    for key in (f"{model.__name__}.{name}", name):
        if key in _SAMPLES:
            return _SAMPLES[key]
    kind = plain_type(field.annotation)
    return next(iter(kind)) if isinstance(kind, type) and issubclass(kind, Enum) else typing.get_args(kind)[0]


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return " Needed."
    return "" if field.default is None else f" Default: {_toml(field.default)}."


def _purpose(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, Enum | str | Path):
        text = str(value.value if isinstance(value, Enum) else value)
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return repr(value)
