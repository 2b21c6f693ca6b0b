"""The functions of libaravis-0.8 (and of the GLib below it) that we call, with their C types.

`library().camera_new(b"192.168.1.5")` calls `arv_camera_new`. Functions that take a `GError **` get it appended here,
and raise `AravisError` where it was set. Objects are plain addresses (int); who made one gives it back by `unref`.
All calls release Python's lock, so that one which waits for a camera holds up nobody else.

Types: the headers of Aravis 0.8.26 and GLib 2.74. Every 0.8 release has these functions with these types.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from enum import IntEnum
from functools import cache
from typing import Any

from edge.errors import SourceError

NAMES = ("libaravis-0.8.so.0", "libaravis-0.8.so")
INSTALL = "install it: sudo apt-get install libaravis-0.8-0 (Debian, Ubuntu)"

_Object = ctypes.c_void_p
_Text = ctypes.c_char_p
_Int = ctypes.c_int
_Uint = ctypes.c_uint
_Int64 = ctypes.c_int64
_Uint64 = ctypes.c_uint64
_Double = ctypes.c_double
_Size = ctypes.c_size_t
_IntOut = ctypes.POINTER(ctypes.c_int)
_UintOut = ctypes.POINTER(ctypes.c_uint)
_Int64Out = ctypes.POINTER(ctypes.c_int64)
_DoubleOut = ctypes.POINTER(ctypes.c_double)


class _GError(ctypes.Structure):
    _fields_ = [("domain", ctypes.c_uint32), ("code", ctypes.c_int), ("message", ctypes.c_char_p)]


class _GSList(ctypes.Structure):
    pass


_GSList._fields_ = [("data", ctypes.c_void_p), ("next", ctypes.POINTER(_GSList))]
_ErrorOut = ctypes.POINTER(ctypes.POINTER(_GError))


class BufferStatus(IntEnum):
    """`ArvBufferStatus`."""

    UNKNOWN = -1
    SUCCESS = 0
    CLEARED = 1
    TIMEOUT = 2
    MISSING_PACKETS = 3
    WRONG_PACKET_ID = 4
    SIZE_MISMATCH = 5
    FILLING = 6
    ABORTED = 7


class DeviceError(IntEnum):
    """`ArvDeviceError`, as far as it is told apart here."""

    NOT_CONNECTED = 2
    PROTOCOL_ERROR = 3
    TIMEOUT = 5
    NOT_FOUND = 6
    NOT_CONTROLLER = 10
    ACCESS_DENIED = 17


class Access(IntEnum):
    """`ArvGcAccessMode`."""

    UNDEFINED = -1
    READ_ONLY = 0
    WRITE_ONLY = 1
    READ_WRITE = 2


PACKET_SOCKET_DISABLED = 1  # ArvGvStreamOption
PACKET_SIZE_ADJUSTMENT_NEVER = 0  # ArvGvPacketSizeAdjustment
RESEND_NEVER = 0  # ArvGvStreamPacketResend
SOCKET_BUFFER_FIXED = 0  # ArvGvStreamSocketBuffer

# name: (result, arguments). Those of _CHECKED end with a GError **, which is not listed.
_PLAIN: dict[str, tuple[Any, tuple[Any, ...]]] = {
    # buffers
    "buffer_new_full": (_Object, (_Size, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)),
    "buffer_get_status": (_Int, (_Object,)),
    "buffer_get_user_data": (ctypes.c_void_p, (_Object,)),
    "buffer_get_frame_id": (_Uint64, (_Object,)),
    "buffer_set_frame_id": (None, (_Object, _Uint64)),
    "buffer_get_timestamp": (_Uint64, (_Object,)),
    "buffer_set_timestamp": (None, (_Object, _Uint64)),
    "buffer_get_system_timestamp": (_Uint64, (_Object,)),
    "buffer_set_system_timestamp": (None, (_Object, _Uint64)),
    "buffer_get_image_data": (ctypes.c_void_p, (_Object, ctypes.POINTER(_Size))),
    "buffer_get_image_width": (_Int, (_Object,)),
    "buffer_get_image_height": (_Int, (_Object,)),
    "buffer_get_image_pixel_format": (ctypes.c_uint32, (_Object,)),
    "buffer_get_image_padding": (None, (_Object, _IntOut, _IntOut)),
    "buffer_has_chunks": (_Int, (_Object,)),
    # streams
    "stream_push_buffer": (None, (_Object, _Object)),
    "stream_timeout_pop_buffer": (_Object, (_Object, _Uint64)),  # microseconds
    "stream_try_pop_buffer": (_Object, (_Object,)),
    "stream_get_n_buffers": (None, (_Object, _IntOut, _IntOut)),
    "stream_get_n_infos": (_Uint, (_Object,)),
    "stream_get_info_name": (_Text, (_Object, _Uint)),
    "stream_get_info_uint64_by_name": (_Uint64, (_Object, _Text)),
    # cameras and devices
    "camera_get_device": (_Object, (_Object,)),
    "camera_is_gv_device": (_Int, (_Object,)),
    "camera_gv_set_stream_options": (None, (_Object, _Int)),
    "camera_gv_set_packet_size_adjustment": (None, (_Object, _Int)),
    "camera_create_chunk_parser": (_Object, (_Object,)),
    "gv_stream_get_port": (ctypes.c_uint16, (_Object,)),
    "gv_device_is_controller": (_Int, (_Object,)),
    "device_get_genicam": (_Object, (_Object,)),
    "device_get_feature": (_Object, (_Object, _Text)),
    "device_get_feature_access_mode": (_Int, (_Object, _Text)),
    # GenICam nodes
    "gc_get_node": (_Object, (_Object, _Text)),
    "gc_category_get_features": (ctypes.POINTER(_GSList), (_Object,)),
    "gc_feature_node_get_description": (_Text, (_Object,)),
    "gc_feature_node_get_tooltip": (_Text, (_Object,)),
    "gc_integer_get_unit": (_Text, (_Object,)),
    "gc_float_get_unit": (_Text, (_Object,)),
    "gc_category_get_type": (_Size, ()),
    "gc_enumeration_get_type": (_Size, ()),
    "gc_command_get_type": (_Size, ()),
    "gc_boolean_get_type": (_Size, ()),
    "gc_integer_get_type": (_Size, ()),
    "gc_float_get_type": (_Size, ()),
    "gc_string_get_type": (_Size, ()),
    # discovery
    "get_n_interfaces": (_Uint, ()),
    "get_interface_id": (_Text, (_Uint,)),
    "disable_interface": (None, (_Text,)),
    "update_device_list": (None, ()),
    "get_n_devices": (_Uint, ()),
    "get_device_id": (_Text, (_Uint,)),
    "get_device_physical_id": (_Text, (_Uint,)),
    "get_device_address": (_Text, (_Uint,)),
    "get_device_vendor": (_Text, (_Uint,)),
    "get_device_model": (_Text, (_Uint,)),
    "get_device_serial_nbr": (_Text, (_Uint,)),
    "get_device_protocol": (_Text, (_Uint,)),
}
_CHECKED: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "camera_new": (_Object, (_Text,)),
    "camera_create_stream": (_Object, (_Object, ctypes.c_void_p, ctypes.c_void_p)),
    "camera_get_vendor_name": (_Text, (_Object,)),
    "camera_get_model_name": (_Text, (_Object,)),
    "camera_get_device_serial_number": (_Text, (_Object,)),
    "camera_get_payload": (_Uint, (_Object,)),
    "camera_start_acquisition": (None, (_Object,)),
    "camera_stop_acquisition": (None, (_Object,)),
    "camera_software_trigger": (None, (_Object,)),
    "camera_gv_auto_packet_size": (_Uint, (_Object,)),
    "camera_gv_set_packet_size": (None, (_Object, _Int)),
    "camera_gv_get_packet_size": (_Uint, (_Object,)),
    "camera_gv_set_packet_delay": (None, (_Object, _Int64)),
    "camera_gv_get_packet_delay": (_Int64, (_Object,)),
    "device_is_feature_available": (_Int, (_Object, _Text)),
    "device_execute_command": (None, (_Object, _Text)),
    "device_set_boolean_feature_value": (None, (_Object, _Text, _Int)),
    "device_get_boolean_feature_value": (_Int, (_Object, _Text)),
    "device_set_integer_feature_value": (None, (_Object, _Text, _Int64)),
    "device_get_integer_feature_value": (_Int64, (_Object, _Text)),
    "device_get_integer_feature_bounds": (None, (_Object, _Text, _Int64Out, _Int64Out)),
    "device_get_integer_feature_increment": (_Int64, (_Object, _Text)),
    "device_set_float_feature_value": (None, (_Object, _Text, _Double)),
    "device_get_float_feature_value": (_Double, (_Object, _Text)),
    "device_get_float_feature_bounds": (None, (_Object, _Text, _DoubleOut, _DoubleOut)),
    "device_get_float_feature_increment": (_Double, (_Object, _Text)),
    "device_set_string_feature_value": (None, (_Object, _Text, _Text)),
    "device_get_string_feature_value": (_Text, (_Object, _Text)),
    "device_dup_available_enumeration_feature_values_as_strings": (
        ctypes.POINTER(ctypes.c_char_p),
        (_Object, _Text, _UintOut),
    ),
    "chunk_parser_get_integer_value": (_Int64, (_Object, _Object, _Text)),
}


class AravisError(SourceError):
    """What Aravis says went wrong. `device_error` is None where the fault is none of the device's."""

    def __init__(self, text: str, code: int, device_error: bool) -> None:
        super().__init__(text)
        self.device_error = code if device_error else None

    @property
    def away(self) -> bool:
        """Whether the device did not answer."""
        return self.device_error in (DeviceError.NOT_CONNECTED, DeviceError.TIMEOUT, DeviceError.NOT_FOUND)


class Library:
    """libaravis, with its functions as methods (without the prefix `arv_`)."""

    def __init__(self) -> None:
        """Loads it. Raises `SourceError` that says how to install it."""
        self._aravis = _load(NAMES)
        # Below Aravis: what it was linked with is loaded already.
        self._glib, self._gobject = ctypes.CDLL("libglib-2.0.so.0"), ctypes.CDLL("libgobject-2.0.so.0")
        below: tuple[tuple[Any, Any, list[Any]], ...] = (
            (self._glib.g_error_free, None, [ctypes.POINTER(_GError)]),
            (self._glib.g_quark_to_string, ctypes.c_char_p, [ctypes.c_uint32]),
            (self._glib.g_free, None, [ctypes.c_void_p]),
            (self._gobject.g_object_unref, None, [ctypes.c_void_p]),
            (self._gobject.g_object_set, None, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_void_p]),
            (self._gobject.g_type_check_instance_is_a, ctypes.c_int, [ctypes.c_void_p, ctypes.c_size_t]),
        )
        for function, result, arguments in below:
            function.restype, function.argtypes = result, arguments
        self._calls: dict[str, Callable[..., Any]] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """The function of that name, with its types declared; made on first use."""
        if name in _PLAIN:
            function = self._function(name, *_PLAIN[name])
        elif name in _CHECKED:
            result, arguments = _CHECKED[name]
            function = self._raising(self._function(name, result, (*arguments, _ErrorOut)))
        else:
            raise AttributeError(name)
        setattr(self, name, function)
        return function

    def unref(self, reference: int) -> None:
        """Gives back an object."""
        self._gobject.g_object_unref(reference)

    def free(self, memory: Any) -> None:
        """Frees memory of the library's."""
        self._glib.g_free(memory)

    def set_property(self, reference: int, name: str, value: int) -> None:
        """Sets a property of type int, uint or enumeration."""
        self._gobject.g_object_set(reference, name.encode(), value, None)

    def is_a(self, instance: int, kind: int) -> bool:
        """Whether an object is of a type, or has that interface."""
        return bool(self._gobject.g_type_check_instance_is_a(instance, kind))

    def _function(self, name: str, result: Any, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        try:
            function = getattr(self._aravis, f"arv_{name}")
        except AttributeError as error:
            raise SourceError(f"{self._aravis._name} has no function arv_{name}; use Aravis 0.8.20 or newer") from error
        function.restype, function.argtypes = result, list(arguments)
        made: Callable[..., Any] = function
        return made

    def _raising(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            error = ctypes.POINTER(_GError)()
            result = function(*arguments, ctypes.byref(error))
            if error:
                raise self._taken(error)
            return result

        return call

    def _taken(self, error: Any) -> AravisError:
        content = error.contents
        domain = self._glib.g_quark_to_string(content.domain) or b""
        made = AravisError(text(content.message), content.code, domain == b"arv-device-error-quark")
        self._glib.g_error_free(error)
        return made


@cache
def library() -> Library:
    """Aravis, loaded once. Raises `SourceError` where it is not installed."""
    return Library()


def text(value: bytes | None) -> str:
    """A C string of the library's."""
    return "" if value is None else value.decode("utf-8", "replace")


def list_items(head: Any) -> list[int]:
    """The data pointers of a GSList."""
    items = []
    while head:
        items.append(head.contents.data)
        head = head.contents.next
    return items


def _load(names: tuple[str, ...]) -> ctypes.CDLL:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    raise SourceError(f"GigE Vision cameras need {names[0]}, which is not there; {INSTALL}")
