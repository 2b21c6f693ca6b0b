"""Settings of the PLC adapters other than Modbus, one model per protocol; none of their libraries is imported."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from edge.settings_base import FilePath
from edge.settings_plc_adapters import AdapterSection, Host, Port

UserName = Annotated[str, Field(min_length=1, max_length=255)]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$", max_length=255)]
NodeName = Annotated[str, Field(pattern=r"^(ns=\d{1,5};)?[isgb]=.+$", max_length=1024)]
TopicLevel = Annotated[str, Field(pattern=r"^[^+#/\x00]+$", max_length=128)]
TagName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_:.]*$", max_length=255)]
Line = Annotated[int, Field(ge=0, le=1023)]

OUTPUT_FIELDS = ("ready", "heartbeat", "fault", "trigger", "part", "result", "eject", "valid")
INPUT_FIELDS = ("ack", "parts", "part", "encoder", "run")


class LoginSection(AdapterSection):
    """An adapter that may have to log in. The password itself never stands in the settings file."""

    user: UserName | None = Field(default=None, description="User name; anonymous if absent.")
    password_file: FilePath | None = Field(
        default=None, description="File that holds the password of `user`, readable by its owner only."
    )
    password_env: VariableName | None = Field(
        default=None, description="Environment variable that holds the password of `user`."
    )

    @model_validator(mode="after")
    def _one_password(self) -> LoginSection:
        if self.password_file is not None and self.password_env is not None:
            raise ValueError("give one of password_file and password_env, not both")
        if self.user is None and (self.password_file or self.password_env):
            raise ValueError("user: a password is given without a user name")
        return self


class BrokerSection(LoginSection):
    """What MQTT and Sparkplug B share: the broker and how it is reached."""

    host: Host = Field(description="Address or name of the MQTT broker.")
    port: Port | None = Field(default=None, description="TCP port; 8883 with TLS and 1883 without if absent.")
    tls: bool = Field(
        default=True, description="Whether the connection is encrypted and the broker's certificate checked."
    )
    ca_file: FilePath | None = Field(
        default=None, description="Certificates (PEM) that may have signed the broker's; the system's if absent."
    )
    certificate_file: FilePath | None = Field(
        default=None, description="Our certificate (PEM), where the broker asks for one."
    )
    key_file: FilePath | None = Field(default=None, description="Private key (PEM) of certificate_file.")
    client_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] | None = Field(
        default=None, description="Client identifier, unique at the broker; made from line or node if absent."
    )

    @model_validator(mode="after")
    def _tls_files(self) -> BrokerSection:
        given = [key for key in ("ca_file", "certificate_file", "key_file") if getattr(self, key) is not None]
        if given and not self.tls:
            raise ValueError(f"{', '.join(given)}: used with tls = true only")
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("certificate_file and key_file: give both or none")
        return self

    @property
    def broker_port(self) -> int:
        """The port set, or the usual one."""
        return self.port or (8883 if self.tls else 1883)


class MqttAdapterSettings(BrokerSection):
    """MQTT 5 with plain JSON, quality of service 1."""

    type: Literal["mqtt"] = Field(description="Protocol.")
    prefix: Annotated[str, Field(pattern=r"^[^+#\x00/$][^+#\x00]*[^+#\x00/]$", max_length=200)] = Field(
        description="Topics are PREFIX/ask, PREFIX/in and PREFIX/out."
    )
    expiry_s: int = Field(
        default=1, ge=1, le=3600, description="Seconds after which the broker discards what it could not deliver."
    )


class SparkplugAdapterSettings(BrokerSection):
    """Sparkplug B: an edge node with birth, death and data by exception. For supervision, not for fast rejects."""

    type: Literal["sparkplug"] = Field(description="Protocol.")
    group: TopicLevel = Field(description="Sparkplug group id.")
    node: TopicLevel = Field(description="Sparkplug edge node id.")
    command_age_ms: float = Field(
        default=1000.0,
        ge=10,
        le=60_000,
        description="Milliseconds after which the last command (NCMD) of the host counts as silence.",
    )


class OpcuaAdapterSettings(LoginSection):
    """OPC UA: one write of all outputs and one read of all inputs, on nodes of the server."""

    type: Literal["opcua"] = Field(description="Protocol.")
    url: Annotated[str, Field(pattern=r"^opc\.tcp://[^\s/@:]+(:\d{1,5})?(/\S*)?$", max_length=255)] = Field(
        description="Endpoint of the server, such as opc.tcp://192.0.2.10:4840."
    )
    security: Literal["Basic256Sha256", "Aes128_Sha256_RsaOaep", "Aes256_Sha256_RsaPss", "none"] = Field(
        default="Basic256Sha256", description="Security policy; messages are signed and encrypted with all but none."
    )
    certificate_file: FilePath | None = Field(
        default=None, description="Our application certificate (DER or PEM); `edge plc certificate` makes one."
    )
    key_file: FilePath | None = Field(default=None, description="Private key (PEM) of certificate_file.")
    server_certificates: list[FilePath] = Field(
        default=[], max_length=16, description="Certificates (DER or PEM) of servers that are trusted, one by one."
    )
    application_uri: Annotated[str, Field(pattern=r"^urn:\S+$", max_length=255)] | None = Field(
        default=None, description="Application URI; the one in certificate_file if absent."
    )
    outputs_prefix: NodeName = Field(
        default="ns=2;s=EdgeInspect.Out.", description="Node ids of outputs are this and the name of the output."
    )
    inputs_prefix: NodeName = Field(
        default="ns=2;s=EdgeInspect.In.", description="Node ids of inputs are this and the name of the input."
    )
    outputs: dict[str, NodeName] = Field(default={}, description="Node ids of outputs whose name differs.")
    inputs: dict[str, NodeName] = Field(default={}, description="Node ids of inputs whose name differs.")

    @model_validator(mode="after")
    def _secured(self) -> OpcuaAdapterSettings:
        files = {"certificate_file": self.certificate_file, "key_file": self.key_file}
        if self.security == "none":
            odd = [key for key, value in files.items() if value] + ["server_certificates"] * bool(
                self.server_certificates
            )
            if odd:
                raise ValueError(f'{", ".join(odd)}: not used with security = "none"')
            if self.user is not None:
                raise ValueError('user: the password would travel readable with security = "none"')
            return self
        missing = [key for key, value in files.items() if not value] + ["server_certificates"] * (
            not self.server_certificates
        )
        if missing:
            raise ValueError(f'{", ".join(missing)}: needed with security = "{self.security}"')
        return self

    @field_validator("outputs", "inputs")
    @classmethod
    def _known_fields(cls, nodes: dict[str, str], info: object) -> dict[str, str]:
        known = OUTPUT_FIELDS if getattr(info, "field_name", "") == "outputs" else INPUT_FIELDS
        if unknown := sorted(set(nodes) - set(known)):
            raise ValueError(f"{', '.join(unknown)}: no such signal; there are {', '.join(known)}")
        return nodes


class S7AdapterSettings(AdapterSection):
    """Siemens S7 (ISO on TCP): a block of bytes in a data block is written, another is read."""

    type: Literal["s7"] = Field(description="Protocol.")
    host: Host = Field(description="Address or name of the CPU or its communication module.")
    port: Port = Field(default=102, description="TCP port.")
    rack: int = Field(default=0, ge=0, le=7, description="Rack of the CPU.")
    slot: int = Field(default=1, ge=0, le=31, description="Slot of the CPU: 1 for S7-1200 and S7-1500, 2 for S7-300.")
    outputs_db: int = Field(ge=1, le=65_535, description="Number of the data block that is written, 16 bytes.")
    outputs_offset: int = Field(default=0, ge=0, le=65_000, description="First byte that is written.")
    inputs_db: int = Field(ge=1, le=65_535, description="Number of the data block that is read, 14 bytes.")
    inputs_offset: int = Field(default=0, ge=0, le=65_000, description="First byte that is read.")

    @model_validator(mode="after")
    def _apart(self) -> S7AdapterSettings:
        if self.outputs_offset % 2 or self.inputs_offset % 2:
            raise ValueError("outputs_offset and inputs_offset: even numbers, as words of a data block are aligned")
        if self.outputs_db == self.inputs_db and -14 < self.inputs_offset - self.outputs_offset < 16:
            raise ValueError("outputs (16 bytes) and inputs (14 bytes) overlap in the same data block")
        return self


class EthernetIpAdapterSettings(AdapterSection):
    """EtherNet/IP (Logix tags): one array of DINT is written, another is read."""

    type: Literal["ethernetip"] = Field(description="Protocol.")
    host: Host = Field(description="Address or name of the controller or its communication module.")
    port: Port = Field(default=44_818, description="TCP port.")
    slot: int = Field(default=0, ge=0, le=31, description="Slot of the controller in its chassis.")
    outputs_tag: TagName = Field(default="EdgeOut", description="Tag that is written, DINT[7].")
    inputs_tag: TagName = Field(default="EdgeIn", description="Tag that is read, DINT[5].")

    @model_validator(mode="after")
    def _apart(self) -> EthernetIpAdapterSettings:
        if self.outputs_tag.lower() == self.inputs_tag.lower():
            raise ValueError("outputs_tag and inputs_tag: two different tags are needed")
        return self


class GpioAdapterSettings(AdapterSection):
    """Digital lines of this computer: an ejector, a lamp, a relay. No part numbers travel."""

    acknowledges: ClassVar[bool] = False

    type: Literal["gpio"] = Field(description="Protocol.")
    chip: Annotated[str, Field(pattern=r"^/dev/\S+$", max_length=255)] = Field(
        default="/dev/gpiochip0", description="GPIO chip; `gpiodetect` lists them."
    )
    ready: Line | None = Field(default=None, description="Line that is on while results may be expected.")
    heartbeat: Line | None = Field(default=None, description="Line that changes with each exchange.")
    passed: Line | None = Field(default=None, description="Line that is on while the last result is PASS.")
    rejected: Line | None = Field(default=None, description="Line that is on while the last result is not PASS.")
    valid: Line | None = Field(default=None, description="Line that changes with each new result.")
    fault: Line | None = Field(default=None, description="Line that is on while there is a fault.")
    eject: Line | None = Field(default=None, description="Line that drives the ejector.")
    run: Line | None = Field(
        default=None, description="Input that is on while the line is in production; on if absent."
    )
    trigger: Line | None = Field(default=None, description="Input whose rising edges count the parts at the camera.")
    active_low: list[Line] = Field(default=[], max_length=16, description="Lines whose on is the low level.")
    debounce_ms: float = Field(
        default=0.0, ge=0, le=1000, description="Milliseconds for which an input must be steady to count."
    )

    @property
    def output_lines(self) -> dict[str, int]:
        """Line numbers of the outputs that are wired, by name."""
        names = ("ready", "heartbeat", "passed", "rejected", "valid", "fault", "eject")
        return {name: line for name in names if (line := getattr(self, name)) is not None}

    @property
    def input_lines(self) -> dict[str, int]:
        """Line numbers of the inputs that are wired, by name."""
        return {name: line for name in ("run", "trigger") if (line := getattr(self, name)) is not None}

    @model_validator(mode="after")
    def _lines_differ(self) -> GpioAdapterSettings:
        lines = [*self.output_lines.values(), *self.input_lines.values()]
        if not self.output_lines:
            raise ValueError("no output is wired; set at least one of eject, ready, passed, rejected")
        if twice := sorted({line for line in lines if lines.count(line) > 1}):
            raise ValueError(f"line {', '.join(map(str, twice))} is used twice")
        if odd := sorted(set(self.active_low) - set(lines)):
            raise ValueError(f"active_low: line {', '.join(map(str, odd))} is not used")
        return self
