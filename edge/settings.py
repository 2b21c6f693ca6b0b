"""The line's settings: one TOML file, overridden by EDGE_* environment variables.

`EDGE_ALERT__DEADLINE_MS=300` overrides `deadline_ms` of `[alert]`; `EDGE_CAMERAS` is a JSON list. Every key has its
unit in its name, and a range and a description in its model: `edge config example` prints them all. Keys and
variables that nobody knows are refused, with the line they stand on and what was probably meant.
"""

from __future__ import annotations

import os
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import Field, PrivateAttr, ValidationError
from pydantic_settings import BaseSettings, InitSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict
from pydantic_settings.exceptions import SettingsError as SourceFault

from edge.errors import SettingsError
from edge.frames import slots_needed
from edge.settings_faults import Faults, Origin, read_toml
from edge.settings_plc import PlcSettings
from edge.settings_sources import FilePath, FolderSource, OpencvSource, Section, SimulatedSource, SourceSettings
from edge.settings_sources import base_folder as _base_folder
from edge.settings_tracking import TriggerSettings, check_tracking

__all__ = [
    "AlertSettings",
    "ArchiveSettings",
    "CameraSettings",
    "FolderSource",
    "InferenceSettings",
    "LinePaths",
    "LineSettings",
    "LogSettings",
    "OpencvSource",
    "PlcSettings",
    "Settings",
    "SimulatedSource",
    "SourceSettings",
    "load_settings",
]

IPC_PATH_MAX = 107  # bytes of a Unix socket's path, sockaddr_un

PlainName = Annotated[str, Field(min_length=1, max_length=32, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")]
TcpEndpoint = Annotated[str, Field(pattern=r"^tcp://[^\s:]+:\d{1,5}$", max_length=255)]
DeadlineMs = Annotated[float, Field(ge=10, le=60_000)]


class LineSettings(Section):
    """The line as a whole."""

    name: PlainName = Field(description="Name of the line: lower-case letters, digits and hyphens.")
    data_dir: FilePath | None = Field(
        default=None,
        description="Folder of the verdict ledger and the archive, one per line; "
        "by default /var/lib/edge-inspect/<line> for the system, ~/.local/share/edge-inspect/<line> for a user.",
    )
    runtime_dir: FilePath | None = Field(
        default=None,
        description="Folder of sockets and locks; by default /run/edge-inspect/<line> where that may be written, "
        "else in the user's runtime folder.",
    )
    keys_dir: FilePath | None = Field(
        default=None, description="Folder of the keys that `edge keys create` made; needed for tcp:// endpoints."
    )


class CameraSettings(Section):
    """One camera."""

    name: PlainName = Field(description="Name of the camera, unique in the line: lower-case letters, digits, hyphens.")
    bundle: FilePath | None = Field(
        default=None, description="Bundle that judges its parts; [inference] bundle if absent."
    )
    limit_percent: float = Field(
        default=100.0, gt=0, le=1000, description="A part is rejected above this percentage of the bundle's limit."
    )
    deadline_ms: DeadlineMs | None = Field(
        default=None, description="Milliseconds from trigger to verdict at most; [alert] deadline_ms if absent."
    )
    ring_slots: int | None = Field(
        default=None,
        ge=3,
        le=4096,
        description="Frames kept in shared memory; as many as the rate and the deadline need if absent.",
    )
    group: PlainName | None = Field(
        default=None,
        description="Cameras of the same group see the same parts at the same moment; the worst of them decides.",
    )
    source: SourceSettings = Field(description="Where its frames come from.")
    trigger: TriggerSettings = Field(default=TriggerSettings(), description="Which part a frame shows.")


class InferenceSettings(Section):
    """How frames are scored."""

    bundle: FilePath | None = Field(default=None, description="Bundle of all cameras that name none of their own.")
    engines: list[Literal["openvino", "torch", "tensorrt", "torch_cuda"]] = Field(
        default=["openvino", "torch"], min_length=1, description="Engines in the order in which they are tried."
    )
    batch_max: int = Field(default=8, ge=1, le=64, description="Most frames scored at once.")
    batch_wait_ms: float = Field(
        default=0.0, ge=0, le=1000, description="Milliseconds a frame waits for others to be scored with it."
    )
    threads: int = Field(default=0, ge=0, le=1024, description="Threads of the engine; 0 leaves it to the engine.")
    precision: Literal["auto", "fp32", "fp16", "bf16", "int8", "fp8"] = Field(
        default="auto",
        description="Precision of the engine; auto takes the fastest that is sure to judge alike on this processor. "
        "int8 is faster on processors without AMX; an engine that cannot, or fails the parity gate, uses auto.",
    )
    keep_warm_s: float = Field(
        default=2.0, ge=0, le=3600, description="Runs the engine once after so many idle seconds; 0 never does."
    )
    endpoint: TcpEndpoint | None = Field(
        default=None, description="tcp://HOST:PORT where inference runs on another computer; frames then travel there."
    )


class AlertSettings(Section):
    """How verdicts are given."""

    deadline_ms: DeadlineMs = Field(default=500.0, description="Milliseconds from trigger to verdict at most.")
    unjudged: Literal["reject", "pass"] = Field(
        default="reject", description="What becomes of a part that was not judged in time."
    )
    commit_ms: float = Field(
        default=5.0, ge=0, le=1000, description="Milliseconds for which verdicts are gathered into one write to disk."
    )
    ledger_days: float = Field(
        default=730,
        ge=0,
        le=36_500,
        description="Days a verdict stays in the ledger, about 270 bytes each; 0 keeps it for ever.",
    )
    endpoint: TcpEndpoint | None = Field(
        default=None, description="tcp://HOST:PORT of this computer where inference runs on another one."
    )
    sync_ms: float = Field(
        default=5.0,
        ge=0.01,
        le=1000,
        description="Milliseconds by which the triggers of a group's cameras may differ; parts must be further apart "
        "than twice this. Not used where parts are numbered by the PLC or the encoder.",
    )


class ArchiveSettings(Section):
    """Which frames are kept."""

    enabled: bool = Field(default=True, description="Whether frames are kept at all.")
    dir: FilePath | None = Field(default=None, description="Folder of the archive; `archive` in data_dir if absent.")
    save: list[Literal["pass", "reject", "unjudged"]] = Field(
        default=["reject", "unjudged"], description="Verdicts whose frames are kept."
    )
    keep_days: float = Field(default=30.0, gt=0, le=36_500, description="Days after which frames are removed.")
    max_gb: float = Field(
        default=20.0, ge=0.001, le=1e6, description="Gigabytes (10^9 bytes) above which the oldest frames are removed."
    )
    min_free_gb: float = Field(
        default=2.0, ge=0, le=1e6, description="Gigabytes (10^9 bytes) of the disk that the archive leaves free."
    )
    queue_frames: int = Field(
        default=32, ge=1, le=10_000, description="Frames that may wait to be written; more are dropped and counted."
    )


class LogSettings(Section):
    """What processes log to standard error."""

    format: Literal["console", "json"] = Field(default="console", description="For people, or one JSON object a line.")
    level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="Least level logged.")


@dataclass(frozen=True)
class LinePaths:
    """Where a line keeps its files."""

    data: Path
    ledger: Path
    archive: Path
    runtime: Path


_file_data: ContextVar[dict[str, Any]] = ContextVar("_file_data")


class Settings(BaseSettings):
    """The settings of one line. Made by `load_settings`."""

    model_config = SettingsConfigDict(
        env_prefix="EDGE_", env_nested_delimiter="__", extra="forbid", frozen=True, allow_inf_nan=False
    )

    line: LineSettings = Field(description="The line as a whole.")
    cameras: list[CameraSettings] = Field(min_length=1, max_length=64, description="One table per camera.")
    inference: InferenceSettings = Field(default=InferenceSettings(), description="How frames are scored.")
    alert: AlertSettings = Field(default=AlertSettings(), description="How verdicts are given.")
    plc: PlcSettings | None = Field(default=None, description="The line's PLC; a line without one only records.")
    archive: ArchiveSettings = Field(default=ArchiveSettings(), description="Which frames are kept.")
    log: LogSettings = Field(default=LogSettings(), description="What processes log.")

    _file: Path = PrivateAttr(default=Path("line.toml"))

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment over the file; nothing else (no .env file that happens to lie about)."""
        return env_settings, InitSettingsSource(settings_cls, _file_data.get({})), init_settings

    @property
    def file(self) -> Path:
        """The file these settings come from."""
        return self._file

    def camera(self, name: str) -> CameraSettings:
        """The camera of that name. Raises `SettingsError` that names those there are."""
        for camera in self.cameras:
            if camera.name == name:
                return camera
        known = ", ".join(camera.name for camera in self.cameras)
        raise SettingsError(f"{self._file}: line {self.line.name} has no camera {name!r}; it has {known}")

    def deadline_ms(self, camera: CameraSettings) -> float:
        """Milliseconds from trigger to verdict at most."""
        return self.alert.deadline_ms if camera.deadline_ms is None else camera.deadline_ms

    def bundle(self, camera: CameraSettings) -> Path:
        """The bundle that judges this camera's parts."""
        bundle = camera.bundle or self.inference.bundle
        if bundle is None:
            raise SettingsError(f"{self._file}: camera {camera.name} has no bundle, and [inference] names none")
        return bundle

    def ring_slots(self, camera: CameraSettings, rate_hz: float) -> int:
        """Slots of this camera's ring at that rate. Raises `SettingsError` where `ring_slots` is too small for it."""
        needed = slots_needed(rate_hz, self.deadline_ms(camera) / 1000, camera.source.slots_held)
        if camera.ring_slots is not None and camera.ring_slots < needed:
            raise SettingsError(
                f"{self._file}: camera {camera.name}: ring_slots = {camera.ring_slots} is too small: {rate_hz:g} "
                f"frames per second with a deadline of {self.deadline_ms(camera):g} ms need {needed}; or leave it out"
            )
        return max(needed, 3) if camera.ring_slots is None else camera.ring_slots

    @property
    def paths(self) -> LinePaths:
        """Where the line keeps its files."""
        data = self.line.data_dir or _data_folder(self.line.name)
        return LinePaths(
            data=data,
            ledger=data / "ledger.sqlite",
            archive=self.archive.dir or data / "archive",
            runtime=self.line.runtime_dir or _runtime_folder(self.line.name),
        )


def load_settings(path: Path) -> Settings:
    """Reads line.toml and the EDGE_* variables.

    Raises `SettingsError` that lists every fault with its file and line (or variable), key and what is allowed.
    """
    path = path.absolute()
    data, lines = read_toml(path)
    faults = Faults(Settings, Origin(path, data, lines))
    faults.unknown_variables()
    faults.raise_any()
    tokens = (_base_folder.set(path.parent), _file_data.set(data))
    try:
        settings = Settings()  # type: ignore[call-arg] # the sources give them
    except ValidationError as error:
        faults.invalid(error)
        faults.raise_any()
        raise
    except SourceFault as error:
        faults.unreadable_variable(error)
        faults.raise_any()
        raise
    finally:
        _base_folder.reset(tokens[0])
        _file_data.reset(tokens[1])
    settings._file = path
    _check_whole(settings, faults)
    faults.raise_any()
    return settings


def _check_whole(settings: Settings, faults: Faults) -> None:
    """What no single key can know."""
    seen: set[str] = set()
    for number, camera in enumerate(settings.cameras):
        at = ("cameras", number)
        if camera.name in seen:
            faults.add((*at, "name"), f"{camera.name!r} is the name of an earlier camera; each needs its own")
        seen.add(camera.name)
        if camera.bundle is None and settings.inference.bundle is None:
            faults.add(at, f'camera {camera.name} has no bundle; add `bundle = "FOLDER"` here or to [inference]')
        rate = camera.source.known_rate_hz
        if rate is not None:
            try:
                settings.ring_slots(camera, rate)
            except SettingsError as error:
                faults.add((*at, "ring_slots"), str(error).split(": ", 2)[2])
        if settings.plc is not None and (text := settings.plc.too_late(settings.deadline_ms(camera))):
            faults.add(("plc", "window_ms"), f"camera {camera.name}: {text}")
    check_tracking(settings, faults)
    for key, endpoint in (("inference", settings.inference.endpoint), ("alert", settings.alert.endpoint)):
        if endpoint is not None and settings.line.keys_dir is None:
            faults.add((key, "endpoint"), "tcp:// needs keys: run `edge keys create FOLDER`, and set [line] keys_dir")
    longest = max(len(f"capture-{name}.pub") for name in seen)
    size = len(os.fsencode(settings.paths.runtime)) + 1 + longest
    if size > IPC_PATH_MAX:
        faults.add(
            ("line", "runtime_dir"),
            f"{settings.paths.runtime} is too long: its sockets' paths would have {size} bytes, at most "
            f"{IPC_PATH_MAX} are allowed; set [line] runtime_dir to a shorter folder",
        )


def _data_folder(line: str) -> Path:
    system = Path("/var/lib/edge-inspect") / line
    if os.geteuid() == 0 or os.access(system, os.W_OK):
        return system
    return platformdirs.user_data_path("edge-inspect") / line


def _runtime_folder(line: str) -> Path:
    system = Path("/run/edge-inspect")
    mine = system / line
    for folder in (mine, system, system.parent):
        if folder.exists():
            if os.access(folder, os.W_OK):
                return mine
            break
    user = os.environ.get("XDG_RUNTIME_DIR")
    if user and os.access(user, os.W_OK):
        return Path(user) / "edge-inspect" / line
    return Path(f"/tmp/edge-inspect-{os.getuid()}") / line  # noqa: S108 - ownership and mode are checked on use
