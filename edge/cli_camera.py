"""`edge camera`: which cameras there are, what one is set to, a few pictures of it."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Table

from edge.errors import SettingsError, SourceError
from edge.settings_sources import GigeSource, SourceSettings

if TYPE_CHECKING:
    from edge.capture.aravis.camera import Camera
    from edge.capture.source import Grab, Source

app = typer.Typer(no_args_is_help=True, help="Find cameras, look into them, take pictures.")

CameraName = Annotated[
    str,
    typer.Argument(metavar="CAMERA", help="Address, serial number, or LINE[:CAMERA]: settings file or name of a line."),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON, for programs.")]


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Ask the network for GigE Vision cameras (a second's broadcast on every interface)."""
    from edge.capture.aravis.discovery import discover
    from edge.capture.aravis.network import unreachable

    cameras = discover()
    if as_json:
        typer.echo(json.dumps([{**asdict(camera), "reachable": camera.reachable} for camera in cameras], indent=1))
        return
    if not cameras:
        typer.echo(
            "no GigE Vision camera answers. Is it on, on this network, and not behind a router? Does this computer's "
            "firewall drop UDP from port 3956?"
        )
        return
    table = Table(title="GigE Vision cameras", title_justify="left")
    for heading in ("address", "maker", "model", "serial", "MAC", "can be opened"):
        table.add_column(heading, no_wrap=heading != "can be opened")
    for camera in cameras:
        why = unreachable(camera.address)
        table.add_row(camera.address, camera.vendor, camera.model, camera.serial, camera.mac, why or "yes")
    Console().print(table)


@app.command()
def show(camera: CameraName, as_json: AsJson = False) -> None:
    """Print who a camera is, and the settings that matter. Changes nothing; works while a line uses it, too."""
    with _opened(camera) as opened:
        facts = _facts(opened)
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    table = Table(title=f"Camera {facts['address']}", show_header=False, title_justify="left")
    for name, value in facts.items():
        table.add_row(name.replace("_", " "), str(value))
    Console().print(table)


@app.command()
def features(
    camera: CameraName,
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]...", help="Only these.")] = None,
    as_json: AsJson = False,
) -> None:
    """List a camera's GenICam features: what each holds now and what it may hold, for [cameras.source.features]."""
    with _opened(camera) as opened:
        if names:
            found = [opened.features.describe(name) for name in names]
        else:
            found = [opened.features.describe(name, category) for category, name in opened.features.names()]
    if as_json:
        typer.echo(json.dumps([{**asdict(feature), "allowed": feature.allowed} for feature in found], indent=1))
        return
    table = Table(title=f"Features of camera {opened.address}", title_justify="left")
    for heading in ("feature", "value", "may hold", "access"):
        table.add_column(heading, no_wrap=heading == "feature")
    category = ""
    for feature in found:
        if feature.category != category:
            category = feature.category
            table.add_section()
            table.add_row(f"[bold]{category}", "", "", "")
        value = "" if feature.value is None else str(feature.value)
        table.add_row(feature.name, value, feature.allowed, feature.access)
    Console().print(table)


@app.command()
def grab(
    camera: CameraName,
    out: Annotated[Path, typer.Option(help="Folder for the pictures; it is made.")] = Path("grabbed"),
    count: Annotated[int, typer.Option(min=1, max=100_000, help="How many pictures.")] = 1,
    timeout: Annotated[float, typer.Option(min=0.1, max=3600, help="Longest wait for a picture, seconds.")] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Take pictures as PNG, exactly as a line would get them (Bayer mosaics in colour).

    With LINE:CAMERA any kind of source works, with all its settings; a software trigger is given for each picture.
    """
    from edge.capture.sources import open_source

    settings = _settings(camera)
    source = open_source(settings)
    by_software = getattr(settings, "trigger", "off") == "software"
    out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    try:
        for part, grabbed in enumerate(_pictures(source, by_software, count, timeout)):
            file = out / f"{time.strftime('%Y%m%d-%H%M%S')}-{part:05d}.png"
            usable = grabbed.slot is not None
            if usable:
                _write_png(file, grabbed)
            rows.append(
                {
                    "status": grabbed.status.value,
                    "file": str(file) if usable else None,
                    "width": grabbed.width,
                    "height": grabbed.height,
                    "pixel_format": grabbed.pixel_format.value,
                    "camera_frame": grabbed.camera_frame,
                    "camera_time_ns": grabbed.camera_time_ns,
                }
            )
            if not as_json:
                typer.echo(f"{file}" if usable else f"part {part}: {grabbed.status.value}, no picture", err=not usable)
    finally:
        source.close()
    if as_json:
        typer.echo(json.dumps(rows, indent=1))
    if any(row["file"] is None for row in rows):
        raise typer.Exit(1)


def _pictures(source: Source, by_software: bool, count: int, timeout_s: float) -> Iterator[Grab]:
    """Opens the source and gives `count` parts; their slots are taken back after each."""
    from edge.capture.memory_slots import MemorySlots
    from edge.capture.source import EndOfSource

    info = source.open()
    typer.echo(info.description, err=True)
    pool = MemorySlots(info.max_bytes)
    source.start(pool)
    trigger = getattr(source, "software_trigger", None) if by_software else None
    for _ in range(count):
        if trigger is not None:
            trigger()
        try:
            part = source.next(timeout_s)
        except EndOfSource:
            return
        if part is None:
            fault, _ = source.health()
            raise SourceError(fault or f"no picture in {timeout_s:g} s; does the camera wait for a trigger?")
        yield part
        if part.slot is not None:
            pool.release(part.slot)


def _write_png(file: Path, grabbed: Grab) -> None:
    import cv2

    from edge.capture.pixels import frame_view
    from pipelines.heatmap import to_bgr
    from pipelines.images import PixelFormat

    assert grabbed.slot is not None
    pixels = frame_view(grabbed.slot.buffer, grabbed.height, grabbed.width, grabbed.pixel_format.channels)
    assert pixels is not None
    image = pixels if grabbed.pixel_format is PixelFormat.MONO8 else to_bgr(pixels, grabbed.pixel_format)
    written, data = cv2.imencode(".png", image)
    try:
        if not written:
            raise SourceError(f"{file}: this picture cannot be written as PNG")
        file.write_bytes(data.tobytes())
    except OSError as error:
        raise SourceError(f"{file}: cannot write the picture: {error.strerror}; choose another --out") from error


def _facts(camera: Camera) -> dict[str, Any]:
    from edge.capture.aravis import network

    features = camera.features
    facts: dict[str, Any] = {
        "address": camera.address,
        "maker": camera.vendor,
        "model": camera.model,
        "serial": camera.serial,
        "subnet": str(network.subnet_of(camera.address) or "none of this computer's"),
        "in_use_by_another_program": not camera.controlled,
        "packet_sockets_allowed": network.may_use_packet_sockets(),
        "receive_buffer_limit_bytes": network.receive_buffer_limit(),
    }
    for name, variants in _SHOWN.items():
        known = features.first(*variants)
        if known is not None:
            facts[name] = features.get(known)
    formats = features.describe("PixelFormat").choices if features.has("PixelFormat") else ()
    facts["pixel_formats"] = ", ".join(formats)
    return facts


_SHOWN = {
    "firmware": ("DeviceFirmwareVersion", "DeviceVersion"),
    "sensor_width_px": ("SensorWidth", "WidthMax"),
    "sensor_height_px": ("SensorHeight", "HeightMax"),
    "width_px": ("Width",),
    "height_px": ("Height",),
    "offset_x_px": ("OffsetX",),
    "offset_y_px": ("OffsetY",),
    "pixel_format": ("PixelFormat",),
    "exposure_us": ("ExposureTime", "ExposureTimeAbs", "ExposureTimeRaw"),
    "gain": ("Gain", "GainAbs", "GainRaw"),
    "rate_hz": ("AcquisitionFrameRate", "AcquisitionFrameRateAbs", "FPS"),
    "trigger_mode": ("TriggerMode",),
    "trigger_source": ("TriggerSource",),
    "packet_size_bytes": ("GevSCPSPacketSize",),
    "temperature": ("DeviceTemperature",),
}


@contextmanager
def _opened(name: str) -> Iterator[Camera]:
    from edge.capture.aravis.camera import Camera

    settings = _settings(name)
    if not isinstance(settings, GigeSource):
        raise SourceError(f'{name}: its source is of type "{settings.type}"; only a "gige" camera can be asked this')
    camera = Camera(settings)
    try:
        yield camera
    finally:
        camera.close()


def _settings(name: str) -> SourceSettings:
    """The settings of a camera named by address, serial number, or line and camera."""
    where, _, camera = name.rpartition(":")
    if "/" in name or ".toml" in name or where:
        return _of_line(where or name, camera if where else "")
    key = "address" if name.count(".") == 3 and name.replace(".", "").isdecimal() else "serial"
    try:
        return GigeSource.model_validate({"type": "gige", key: name})
    except ValidationError as error:
        raise SettingsError(f"{name}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error


def _of_line(line: str, camera: str) -> SourceSettings:
    from edge.run import find_line
    from edge.settings import load_settings

    settings = load_settings(find_line(line))
    if not camera and len(settings.cameras) == 1:
        return settings.cameras[0].source
    return settings.camera(camera).source
