"""One connection to an MQTT 5 broker (OASIS MQTT 5.0), driven by the calling thread; mqtt.py and sparkplug.py share it.

A connection is never repaired: after a failure the next `open` makes a new client, so that nothing the old one had
not yet delivered is sent again. Waiting means running the network loop until an answer came or the time is over.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from edge.alert.plc.logins import private_file, read_password
from edge.errors import PlcError, PlcTimeout
from edge.settings_plc_protocols import BrokerSection

CONNECT_S = 2.0  # TCP, TLS and CONNECT together take longer than one exchange may
KEEP_ALIVE_S = 15  # a broker counts us as dead after 1.5 times this without a packet (MQTT 5.0, 3.1.2.10)


@dataclass(frozen=True)
class Will:
    """What the broker publishes when we are gone, however we went."""

    topic: str
    payload: bytes
    qos: int = 1


class _Socket(ssl.SSLSocket):
    """Closes itself where the handshake fails: the MQTT library forgets it then, and open sockets would pile up."""

    def do_handshake(self, block: bool = False) -> None:
        try:
            super().do_handshake(block)
        except OSError:
            self.close()
            raise


class Broker:
    """A connection to the broker that `settings` name. Used from one thread."""

    def __init__(self, settings: BrokerSection, name: str, client_id: str) -> None:
        self._settings = settings
        self._name = name
        self._client_id = settings.client_id or client_id
        self._client: paho.Client | None = None
        self._connected: ReasonCode | None = None
        self._acknowledged: dict[int, ReasonCode] = {}  # answers to PUBLISH and SUBSCRIBE by packet identifier

    def open(self, will: Will, on_message: Callable[[str, bytes], None]) -> None:
        """Connects with a clean session. `on_message` gets topic and payload of what arrives while we wait.

        Raises `PlcTimeout` or `PlcError`.
        """
        self.drop()
        settings = self._settings
        client = paho.Client(
            CallbackAPIVersion.VERSION2, self._client_id, protocol=paho.MQTTv5, reconnect_on_failure=False
        )
        client.connect_timeout = CONNECT_S
        if settings.tls:
            client.tls_set_context(self._tls())
        if settings.user is not None:
            client.username_pw_set(settings.user, read_password(settings, self._name))
        client.will_set(will.topic, will.payload, will.qos, retain=False)
        client.on_connect = self._on_connect
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_message = lambda _client, _data, message: on_message(message.topic, bytes(message.payload))
        client.on_socket_open = _no_delay
        self._connected, self._client = None, client
        self._acknowledged.clear()
        try:
            client.connect(settings.host, settings.broker_port, keepalive=KEEP_ALIVE_S, clean_start=True)
        except TimeoutError as error:
            raise PlcTimeout(
                f"{self._name}: no answer within {CONNECT_S:g} s; is this the broker's address?"
            ) from error
        except ssl.SSLCertVerificationError as error:
            raise PlcError(
                f"{self._name}: the broker's certificate is not trusted: {error.verify_message}; set ca_file to the "
                "certificate that signed it, and host to a name in it"
            ) from error
        except OSError as error:
            raise PlcError(f"{self._name}: cannot connect: {error.strerror or error}") from error
        self.wait(lambda: self._connected is not None, time.monotonic() + CONNECT_S, "CONNECT")
        self._welcome()

    def subscribe(self, topic: str, qos: int, deadline: float) -> None:
        """Subscribes and waits for the broker's answer. Repeating it is harmless and shows that the broker lives."""
        code, packet = self._live().subscribe(topic, qos)
        self._check(code, f"subscribe to {topic}")
        answer = self._answer(packet, deadline, f"SUBSCRIBE {topic}")
        if answer.is_failure:
            raise PlcError(
                f"{self._name}: may not subscribe to {topic}: {answer}; allow it in the broker's access list"
            )

    def publish(self, topic: str, payload: bytes, qos: int, deadline: float, expiry_s: int | None = None) -> None:
        """Publishes; with `qos` 1 waits until the broker has taken it. Never retained."""
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        if expiry_s is not None:
            properties.MessageExpiryInterval = expiry_s
        info = self._live().publish(topic, payload, qos, retain=False, properties=properties)
        self._check(info.rc, f"publish {topic}")
        if qos == 0:
            return
        answer = self._answer(info.mid, deadline, f"PUBLISH {topic}")
        if answer.is_failure:
            raise PlcError(f"{self._name}: may not publish {topic}: {answer}; allow it in the broker's access list")

    def wait(self, done: Callable[[], bool], deadline: float, what: str) -> None:
        """Runs the network loop until `done`. Raises `PlcTimeout` at `deadline`, `PlcError` for a lost connection."""
        client = self._live()
        while not done():
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                raise PlcTimeout(f"{self._name}: no answer to {what} in time")
            code = client.loop(remaining)
            if not done():  # a broker that refuses says so and then closes: what it said matters more
                self._check(code, what)

    def drop(self, say_goodbye: bool = False) -> None:
        """Ends the connection without waiting; either way the broker publishes the will. Never raises."""
        client, self._client = self._client, None
        if client is None:
            return
        with contextlib.suppress(Exception):
            sock = client.socket()
            if say_goodbye:
                # 0x04: the will is published though we leave in order (MQTT 5.0, 3.14.2.1)
                client.disconnect(ReasonCode(PacketTypes.DISCONNECT, "Disconnect with will message"))
            if sock is not None:
                sock.close()

    def _welcome(self) -> None:
        reason = self._connected
        if reason is None or reason.is_failure:
            raise PlcError(
                f"{self._name}: the broker refuses client {self._client_id}: {reason}; check user, password and the "
                "broker's access list"
            )

    def _live(self) -> paho.Client:
        if self._client is None:
            raise PlcError(f"{self._name}: not connected")
        return self._client

    def _check(self, code: int, what: str) -> None:
        if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise PlcError(f"{self._name}: connection lost at {what}: {paho.error_string(MQTTErrorCode(code))}")

    def _answer(self, packet: int | None, deadline: float, what: str) -> ReasonCode:
        if packet is None:
            raise PlcError(f"{self._name}: {what} was not sent")
        self.wait(lambda: packet in self._acknowledged, deadline, what)
        return self._acknowledged.pop(packet)

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: ReasonCode, properties: Any) -> None:
        self._connected = reason

    def _on_publish(self, client: Any, data: Any, packet: int, reason: ReasonCode, properties: Any) -> None:
        self._acknowledged[packet] = reason

    def _on_subscribe(self, client: Any, data: Any, packet: int, reasons: list[ReasonCode], properties: Any) -> None:
        self._acknowledged[packet] = reasons[0]

    def _tls(self) -> ssl.SSLContext:
        settings = self._settings
        path = settings.ca_file
        try:
            context = ssl.create_default_context(cafile=str(path) if path else None)
            context.sslsocket_class = _Socket
            if settings.certificate_file is not None and settings.key_file is not None:
                private_file(settings.key_file, "key_file", self._name)
                path = settings.certificate_file
                context.load_cert_chain(settings.certificate_file, settings.key_file, password="")
        except OSError as error:  # ssl.SSLError is one
            raise PlcError(f"{self._name}: cannot use the certificate {path}: {error.strerror or error}") from error
        return context


def _no_delay(client: Any, data: Any, sock: Any) -> None:
    """Small packets follow each other without an answer between: Nagle's algorithm would hold them for 40 ms."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
