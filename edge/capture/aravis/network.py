"""What this computer and its network settings allow for GigE Vision: subnets, packet sockets, receive buffers."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

CAP_NET_RAW = 13  # linux/capability.h
_RTF_UP, _RTF_GATEWAY = 0x1, 0x2  # linux/route.h


@dataclass(frozen=True)
class Subnet:
    """A network that an interface of this computer is in."""

    interface: str
    network: ipaddress.IPv4Network

    def __str__(self) -> str:
        return f"{self.network} ({self.interface})"


def subnets() -> list[Subnet]:
    """The IPv4 networks this computer is directly in, from the kernel's routes; the loopback network first."""
    found = [Subnet("lo", ipaddress.IPv4Network("127.0.0.0/8"))]
    for line in _read("/proc/net/route").splitlines()[1:]:
        interface, destination, _, flags, _, _, _, mask, *_ = line.split()
        if int(flags, 16) & (_RTF_UP | _RTF_GATEWAY) != _RTF_UP or int(mask, 16) == 0:
            continue
        network = ipaddress.IPv4Network((_little_endian(destination), str(_little_endian(mask))), strict=False)
        found.append(Subnet(interface, network))
    return found


def subnet_of(address: str, known: list[Subnet] | None = None) -> Subnet | None:
    """The network of this computer's that the address is in."""
    where = ipaddress.IPv4Address(address)
    return next((subnet for subnet in (known or subnets()) if where in subnet.network), None)


def unreachable(address: str) -> str:
    """Why a camera at that address cannot be reached from here, or nothing where the subnet fits."""
    known = subnets()
    if subnet_of(address, known) is not None:
        return ""
    here = ", ".join(str(subnet) for subnet in known if subnet.interface != "lo") or "no network at all"
    return (
        f"{address} is in none of this computer's subnets: {here}; give the camera an address in one of them, or the "
        "network card one in the camera's"
    )


def mtu(interface: str) -> int | None:
    """Largest IP packet of an interface, bytes."""
    value = _read(f"/sys/class/net/{interface}/mtu").strip()
    return int(value) if value else None


def may_use_packet_sockets() -> bool:
    """Whether this process has CAP_NET_RAW."""
    for line in _read("/proc/self/status").splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> CAP_NET_RAW & 1)
    return False


def capability_advice() -> str:
    """How to get CAP_NET_RAW."""
    return (
        "packet sockets need CAP_NET_RAW: `edge systemd install` gives it to the service; by hand: "
        f'sudo setcap cap_net_raw+ep {Path(sys.executable).resolve()}, or set socket = "udp"'
    )


def packet_sockets_open() -> int:
    """How many packet sockets this process has open."""
    inodes = {line.split()[-1] for line in _read("/proc/self/net/packet").splitlines()[1:]}
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:  # closed meanwhile
            continue
        count += target.startswith("socket:[") and target[8:-1] in inodes
    return count


def size_receive_buffer(port: int, wanted: int) -> int:
    """Asks for a receive buffer of that many bytes for this process' UDP socket at `port`. Returns what it has then.

    Aravis sizes it too, but only when the first packets of the first frame are there, and that frame then overflows it.
    """
    for entry in Path("/proc/self/fd").iterdir():
        try:
            number = int(entry.name)
            if not str(entry.readlink()).startswith("socket:["):
                continue
            with socket.socket(fileno=os.dup(number)) as candidate:
                if candidate.type != socket.SOCK_DGRAM or candidate.family != socket.AF_INET:
                    continue
                if candidate.getsockname()[1] == port:
                    candidate.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted)
                    # The kernel doubles what is asked, for its own book-keeping.
                    return candidate.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2
        except OSError:  # closed meanwhile, or no socket of a known kind
            continue
    return 0


def receive_buffer_limit() -> int:
    """The most bytes a socket's receive buffer may be asked to have (net.core.rmem_max)."""
    value = _read("/proc/sys/net/core/rmem_max").strip()
    return int(value) if value else sys.maxsize  # a network namespace does not show it


def receive_buffer_advice(wanted: int) -> str:
    """How to allow that many bytes."""
    return (
        f"net.core.rmem_max = {receive_buffer_limit()} allows less than the {wanted} bytes this camera needs: frames "
        f"may be lost; echo net.core.rmem_max={wanted} | sudo tee /etc/sysctl.d/60-edge-inspect.conf && sudo sysctl "
        "--system"
    )


def _little_endian(word: str) -> ipaddress.IPv4Address:
    return ipaddress.IPv4Address(int(word, 16).to_bytes(4, "little"))


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii")
    except OSError:
        return ""
