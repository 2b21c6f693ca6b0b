"""OPC UA (IEC 62541): one Read of all inputs, then one Write of all outputs, on nodes of the PLC's server.

In that order, because a server that hangs then leaves a read behind, never a result that is applied when it wakes up:
closing a connection does not take back what the other side's system has already received. Subscriptions are not used:
a server publishes them by its own clock, which adds tens of milliseconds.

The event loop of asyncua runs inside the calling thread, for as long as a call lasts: two hand-overs between threads
less for every request.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine
from dataclasses import asdict
from typing import Any, ClassVar, TypeVar

from asyncua import ua
from asyncua.client.client import Client
from asyncua.crypto import security_policies
from asyncua.crypto.uacrypto import CertProperties
from asyncua.ua.attribute_ids import AttributeIds
from asyncua.ua.uaerrors import UaError, UaStatusCodeError

from edge.alert.plc.adapter import UINT16, UINT32, Inputs, Outputs
from edge.alert.plc.certificates import application_uri, certificate_der, fingerprint
from edge.alert.plc.logins import private_file, read_password
from edge.errors import PlcError, PlcTimeout
from edge.settings_plc_protocols import INPUT_FIELDS, OUTPUT_FIELDS, OpcuaAdapterSettings

CONNECT_S = 5.0  # a PLC's processor needs seconds for the asymmetric cryptography of a session
SESSION_S = 30.0  # a server forgets our session after this silence: few have room for many dead ones
_WRITABLE = 0x02  # CurrentWrite of UserAccessLevel (IEC 62541-3, 8.57)
_POLICIES: dict[str, Any] = {
    "Basic256Sha256": security_policies.SecurityPolicyBasic256Sha256,
    "Aes128_Sha256_RsaOaep": security_policies.SecurityPolicyAes128Sha256RsaOaep,
    "Aes256_Sha256_RsaPss": security_policies.SecurityPolicyAes256Sha256RsaPss,
}
_HINTS = {
    "BadCertificateUntrusted": "trust our certificate in the server's list",
    "BadSecurityChecksFailed": "trust our certificate in the server's list",
    "BadUserAccessDenied": "check user and password",
    "BadIdentityTokenRejected": "check user and password",
    "BadIdentityTokenInvalid": "check user and password",
    "BadTooManySessions": "end other clients' sessions, or let them time out",
    "BadNodeIdUnknown": "correct the node id in the settings",
    "BadTypeMismatch": "give the node the type in docs/plc/opcua.md",
    "BadNotWritable": "let clients write the node",
}
_RANGES = {
    "ack": (0, UINT16),
    "parts": (0, UINT16),
    "part": (0, UINT32),
    "encoder": (-(2**31), 2**31 - 1),
    "run": (0, 1),
}
_T = TypeVar("_T")

# Its warnings and tracebacks repeat what our errors say in one line.
logging.getLogger("asyncua").setLevel(logging.CRITICAL + 1)


class OpcuaAdapter:
    """A PLC with an OPC UA server, its own or a gateway's."""

    Settings: ClassVar[type[OpcuaAdapterSettings]] = OpcuaAdapterSettings

    def __init__(self, settings: OpcuaAdapterSettings) -> None:
        self._settings = settings
        self.name = f"opcua {settings.url}"
        self._outputs = {f: settings.outputs.get(f, settings.outputs_prefix + f) for f in OUTPUT_FIELDS}
        self._inputs = {f: settings.inputs.get(f, settings.inputs_prefix + f) for f in INPUT_FIELDS}
        self._ids: dict[str, ua.NodeId] = {}  # by their text
        self._reads = ua.ReadParameters()
        self._types: dict[str, ua.VariantType] = {}  # of the outputs, as the server has them
        self._loop: asyncio.AbstractEventLoop | None = None
        self._client: Client | None = None
        self._failed = False  # the connection; a session that is merely refused something is ended in order

    def connect(self) -> None:
        """Opens channel and session, checks every node, reads the inputs. Raises `PlcTimeout` or `PlcError`."""
        self.close()
        try:
            self._open()
        except PlcError:
            self.close()
            raise

    def exchange(self, outputs: Outputs) -> Inputs:
        """Reads the inputs, then writes the outputs."""
        return self._run(self._exchange(outputs), self._settings.timeout_ms / 1000, "exchange")

    def close(self) -> None:
        """Ends the session where the server still answers, else just the connection."""
        loop, client, self._loop, self._client = self._loop, self._client, None, None
        if loop is None:
            return
        with contextlib.suppress(Exception):
            loop.run_until_complete(self._leave(client))
        loop.close()

    def _open(self) -> None:
        for node in (*self._outputs.values(), *self._inputs.values()):
            try:
                self._ids[node] = ua.NodeId.from_string(node)
            except (UaError, ValueError) as error:
                raise PlcError(f"{self.name}: {node!r} is no node id, such as ns=2;s=Name or ns=2;i=5") from error
        self._reads.NodesToRead = [self._value_of(node) for node in self._inputs.values()]
        self._loop, self._failed = asyncio.new_event_loop(), False
        self._run(self._connect(), CONNECT_S, "connect")
        self._run(self._read(), self._settings.timeout_ms / 1000, "read the inputs")

    async def _connect(self) -> None:
        settings = self._settings
        client = self._client = Client(settings.url, timeout=CONNECT_S, watchdog_intervall=SESSION_S)
        client.name = client.description = "edge-inspect"
        client.session_timeout = int(SESSION_S * 1000)
        if settings.security != "none":
            await self._secure(client)
        if settings.user is not None:
            client.set_user(settings.user)
            client.set_password(read_password(settings, self.name) or "")
        await client.connect()
        await self._check_nodes(client)

    async def _secure(self, client: Client) -> None:
        settings = self._settings
        if settings.certificate_file is None or settings.key_file is None:  # refused by the settings already
            raise PlcError(f"{self.name}: certificate_file and key_file are needed")
        key = private_file(settings.key_file, "key_file", self.name)
        own = certificate_der(settings.certificate_file, f"{self.name}: certificate_file")
        client.application_uri = settings.application_uri or application_uri(own, f"{self.name}: certificate_file")
        trusted = [certificate_der(path, f"{self.name}: server_certificates") for path in settings.server_certificates]
        policy = _POLICIES[settings.security]
        pinned = await self._pinned(client, policy.URI, trusted)
        mode = ua.MessageSecurityMode.SignAndEncrypt
        await client.set_security(
            policy, CertProperties(own, "der"), CertProperties(key, "pem"), None, CertProperties(pinned, "der"), mode
        )

    async def _pinned(self, client: Client, policy: str, trusted: list[bytes]) -> bytes:
        """The trusted certificate that the server shows. Asked in the clear, only to name a wrong server or policy.

        That it holds the key is proven by the secure channel. A server that answers nothing in the clear is taken at
        its word where there is but one certificate that it may have.
        """
        mode = ua.MessageSecurityMode.SignAndEncrypt
        try:
            endpoints = await client.connect_and_get_server_endpoints()
        except (ConnectionError, UaError):
            if len(trusted) == 1:
                return trusted[0]
            raise
        shown = {bytes(e.ServerCertificate or b"") for e in endpoints if e.SecurityMode == mode and _is(e, policy)}
        if not shown:
            there = ", ".join(sorted({str(e.SecurityPolicyUri).rpartition("#")[2] for e in endpoints})) or "nothing"
            name = self._settings.security
            raise PlcError(f"{self.name}: does not offer {name} with SignAndEncrypt, but {there}")
        for der in trusted:
            if any(chain.startswith(der) for chain in shown):
                return der
        raise PlcError(
            f"{self.name}: the server's certificate is not among server_certificates; it is "
            f"{' or '.join(map(fingerprint, shown))} (SHA-256): compare with the server's own, then add its file"
        )

    async def _check_nodes(self, client: Client) -> None:
        """Asks for types and access of the outputs: a write must have the node's own type (IEC 62541-4, 5.10.4)."""
        nodes = self._outputs
        attributes = (AttributeIds.Value, AttributeIds.UserAccessLevel)
        wanted = [ua.ReadValueId(self._ids[node], attribute) for node in nodes.values() for attribute in attributes]
        answers = await client.uaclient.read(ua.ReadParameters(NodesToRead=wanted))
        for index, (field, node) in enumerate(nodes.items()):
            value, access = answers[2 * index : 2 * index + 2]
            self._good(value, field, node)
            if value.Value is None or value.Value.VariantType is ua.VariantType.Null:
                raise PlcError(f"{self.name}: {field}, node {node}: has no value yet; give it an initial value")
            if access.Value is not None and not int(access.Value.Value or 0) & _WRITABLE:
                raise PlcError(
                    f"{self.name}: {field}, node {node}: this user may not write it; permit it in the server"
                )
            self._types[field] = value.Value.VariantType

    async def _exchange(self, outputs: Outputs) -> Inputs:
        inputs = await self._read()
        values = asdict(outputs)
        writes = []
        for field, node in self._outputs.items():
            kind = self._types[field]
            value = bool(values[field]) if kind is ua.VariantType.Boolean else int(values[field])
            # Neither status nor time: servers of PLCs refuse a write that carries them.
            data = ua.DataValue(ua.Variant(value, kind), StatusCode=None)
            writes.append(ua.WriteValue(self._ids[node], AttributeIds.Value, None, data))
        answers = await self._connected().uaclient.write(ua.WriteParameters(NodesToWrite=writes))
        for (field, node), status in zip(self._outputs.items(), answers, strict=True):
            if not status.is_good():
                raise PlcError(f"{self.name}: cannot write {field}, node {node}: {_status(status.name)}")
        return inputs

    async def _read(self) -> Inputs:
        answers = await self._connected().uaclient.read(self._reads)
        values: dict[str, Any] = {}
        for (field, node), answer in zip(self._inputs.items(), answers, strict=True):
            self._good(answer, field, node)
            value = answer.Value.Value if answer.Value is not None else None
            low, high = _RANGES[field]
            if not isinstance(value, int) or not low <= value <= high:
                raise PlcError(
                    f"{self.name}: {field}, node {node}: {value!r:.40} is not a whole number from {low} to {high}; "
                    "give the node the type in docs/plc/opcua.md and a value"
                )
            values[field] = bool(value) if field == "run" else int(value)
        return Inputs(**values)

    async def _leave(self, client: Client | None) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if client is not None:
            if not self._failed:
                with contextlib.suppress(Exception):
                    await asyncio.wait_for(client.disconnect(), self._settings.timeout_ms / 1000)
            protocol = client.uaclient.protocol
            if protocol is not None and protocol.transport is not None:
                protocol.transport.abort()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # lets the transport's own close run

    def _run(self, work: Coroutine[Any, Any, _T], seconds: float, what: str) -> _T:
        """Runs `work` in this thread. Any failure is one line with the address; one of the connection is remembered."""
        loop = self._loop
        if loop is None:
            work.close()
            raise PlcError(f"{self.name}: not connected")
        try:
            return loop.run_until_complete(asyncio.wait_for(work, seconds))
        except PlcError:
            raise
        except (asyncio.TimeoutError, TimeoutError) as error:
            self._failed = True
            raise PlcTimeout(f"{self.name}: no answer within {seconds:g} s: {what}") from error
        except UaStatusCodeError as error:
            raise PlcError(f"{self.name}: cannot {what}: {_status(type(error).__name__)}") from error
        except (OSError, UaError, ValueError, TypeError) as error:
            self._failed = True
            reason = " ".join(str(error).split()) or type(error).__name__
            raise PlcError(f"{self.name}: cannot {what}: {reason}") from error

    def _value_of(self, node: str) -> ua.ReadValueId:
        return ua.ReadValueId(self._ids[node], AttributeIds.Value)

    def _connected(self) -> Client:
        if self._client is None:
            raise PlcError(f"{self.name}: not connected")
        return self._client

    def _good(self, answer: ua.DataValue, field: str, node: str) -> None:
        status = answer.StatusCode
        if status is not None and not status.is_good():
            raise PlcError(f"{self.name}: cannot read {field}, node {node}: {_status(status.name)}")


def _is(endpoint: ua.EndpointDescription, policy: str) -> bool:
    return str(endpoint.SecurityPolicyUri) == policy


def _status(name: str) -> str:
    return f"{name}; {_HINTS[name]}" if name in _HINTS else name
