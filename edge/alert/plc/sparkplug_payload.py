"""Sparkplug B payloads (Sparkplug 3.0.0, chapter 6.4) as protobuf messages of the `protobuf` package.

The messages are built here from the field numbers and types of the specification, and only those fields that an edge
node of plain metrics uses; protobuf keeps unknown ones apart. Nothing of the Eclipse project's .proto file or of the
code generated from it (EPL-2.0) is contained, and packages that ship it pull an old MQTT client along.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

_FILE, _PACKAGE = "edge_inspect/sparkplug_b.proto", "edge_inspect.sparkplug_b"
_METRIC_FIELDS = {
    "name": (1, "STRING"),
    "alias": (2, "UINT64"),
    "timestamp": (3, "UINT64"),
    "datatype": (4, "UINT32"),
    "is_historical": (5, "BOOL"),
    "is_null": (7, "BOOL"),
}
_VALUE_FIELDS = {
    "int_value": (10, "UINT32"),
    "long_value": (11, "UINT64"),
    "float_value": (12, "FLOAT"),
    "double_value": (13, "DOUBLE"),
    "boolean_value": (14, "BOOL"),
    "string_value": (15, "STRING"),
}
_PAYLOAD_FIELDS = {"timestamp": (1, "UINT64"), "seq": (3, "UINT64")}


class DataType(IntEnum):
    """Types of metrics that we use (chapter 6.4.16).

    UInt32 is not among them: implementations disagree on the field that carries it.
    """

    INT32 = 3
    INT64 = 4
    UINT16 = 6
    UINT64 = 8
    BOOLEAN = 11


@dataclass(frozen=True, slots=True)
class Metric:
    """One value; `name` stands in births, and wherever the sender does not use aliases. None is a null."""

    value: bool | int | None
    name: str | None = None
    alias: int | None = None
    datatype: DataType | None = None


def encode(metrics: list[Metric], timestamp_ms: int, seq: int | None) -> bytes:
    """A payload; deaths have no `seq`. `timestamp_ms` counts from 1970 in UTC."""
    payload = _PAYLOAD(timestamp=timestamp_ms)
    if seq is not None:
        payload.seq = seq
    for metric in metrics:
        entry = payload.metrics.add(timestamp=timestamp_ms)
        for key in ("name", "alias", "datatype"):
            if (value := getattr(metric, key)) is not None:
                setattr(entry, key, value)
        if metric.value is None:
            entry.is_null = True
        elif isinstance(metric.value, bool):
            entry.boolean_value = metric.value
        elif metric.datatype in (DataType.INT64, DataType.UINT64):
            entry.long_value = metric.value & 0xFFFF_FFFF_FFFF_FFFF
        else:
            entry.int_value = metric.value & 0xFFFF_FFFF  # negative numbers as two's complement (chapter 6.4.16)
    data: bytes = payload.SerializeToString()
    return data


def decode(data: bytes) -> list[Metric]:
    """The metrics of a payload whose values are whole numbers or booleans, others as null; numbers as sent, unsigned.

    Raises `ValueError` for bytes that are no payload.
    """
    payload = _PAYLOAD()
    try:
        payload.ParseFromString(data)
    except DecodeError as error:
        raise ValueError("no Sparkplug B payload") from error
    found = []
    for entry in payload.metrics:
        kind = entry.WhichOneof("value")
        whole = kind in ("int_value", "long_value", "boolean_value") and not entry.is_historical
        found.append(
            Metric(
                getattr(entry, kind) if whole else None,
                entry.name if entry.HasField("name") else None,
                entry.alias if entry.HasField("alias") else None,
            )
        )
    return found


def _payload_class() -> Any:
    """The class of a payload, from a pool of its own: another package may know the same messages by another file."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name=_FILE, package=_PACKAGE, syntax="proto2")
    payload = file.message_type.add(name="Payload")
    metric = payload.nested_type.add(name="Metric")
    metric.oneof_decl.add(name="value")
    for message, fields in ((payload, _PAYLOAD_FIELDS), (metric, _METRIC_FIELDS), (metric, _VALUE_FIELDS)):
        for name, (number, kind) in fields.items():
            field = message.field.add(
                name=name, number=number, label=kinds.LABEL_OPTIONAL, type=kinds.Type.Value(f"TYPE_{kind}")
            )
            if fields is _VALUE_FIELDS:
                field.oneof_index = 0
    payload.field.add(
        name="metrics",
        number=2,
        label=kinds.LABEL_REPEATED,
        type=kinds.TYPE_MESSAGE,
        type_name=f".{_PACKAGE}.Payload.Metric",
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.Payload"))


_PAYLOAD = _payload_class()
