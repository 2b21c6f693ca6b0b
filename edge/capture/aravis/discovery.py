"""Cameras on the network, found by asking all of it. Done only where somebody wants to know.

The question is a broadcast on every interface and takes a second; a camera in another subnet answers it too (where it
can answer by broadcast), though it cannot be opened.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from edge.capture.aravis.library import library, text
from edge.capture.aravis.network import unreachable
from edge.errors import SourceAway, SourceError

_one_at_a_time = threading.Lock()  # Aravis keeps one list for the whole program


@dataclass(frozen=True)
class Found:
    """A camera that answered."""

    address: str
    vendor: str
    model: str
    serial: str
    name: str  # Aravis' id: vendor, model and serial number, or the name given by a user
    mac: str

    @property
    def reachable(self) -> bool:
        """Whether its address is in a subnet of this computer."""
        return not unreachable(self.address)


def discover() -> list[Found]:
    """All GigE Vision cameras that answer, by address. Takes about a second."""
    arv = library()
    with _one_at_a_time:
        for number in range(arv.get_n_interfaces()):
            interface = arv.get_interface_id(number)
            if interface != b"GigEVision":  # USB cameras, and Aravis' own that is no camera at all
                arv.disable_interface(interface)
        arv.update_device_list()
        found = {
            Found(
                address=text(arv.get_device_address(number)),
                vendor=text(arv.get_device_vendor(number)),
                model=text(arv.get_device_model(number)),
                serial=text(arv.get_device_serial_nbr(number)),
                name=text(arv.get_device_id(number)),
                mac=text(arv.get_device_physical_id(number)),
            )
            for number in range(arv.get_n_devices())
            if arv.get_device_protocol(number) == b"GigEVision"
        }
    return sorted(found, key=lambda camera: tuple(int(part) for part in camera.address.split(".")))


def find(serial: str) -> Found:
    """The camera of that serial number or name.

    Raises `SourceAway` that lists those that answer, `SourceError` where several have it.
    """
    cameras = discover()
    matches = [camera for camera in cameras if serial in (camera.serial, camera.name)]
    if len(matches) == 1:
        return matches[0]
    if matches:
        where = ", ".join(camera.address for camera in matches)
        raise SourceError(f"several cameras have the serial number or name {serial!r}: {where}; set address instead")
    listed = ", ".join(f"{camera.serial} ({camera.model}, {camera.address})" for camera in cameras) or "none"
    raise SourceAway(f"no camera has the serial number or name {serial!r}; cameras that answer: {listed}")
