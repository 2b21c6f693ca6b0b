from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.testing import CliRunner

from edge import cli_config, settings_faults
from edge.errors import SettingsError
from edge.settings import CameraSettings, FolderSource, OpencvSource, Settings, SimulatedSource, load_settings
from edge.settings_example import example
from edge.toml_lines import key_lines
from pipelines.images import PixelFormat

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SettingsFile = Callable[..., Path]


def faults_of(path: Path) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    return str(caught.value).splitlines()


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "line.toml"
    path.write_text(text, encoding="utf-8")
    return path


# --- what loads ------------------------------------------------------------------------------------------------------


def test_a_small_file_loads_with_defaults(settings_file: SettingsFile, tmp_path: Path, runtime_dir: Path) -> None:
    settings = load_settings(settings_file())
    camera = settings.camera("top")
    assert settings.file == tmp_path / "line.toml"
    assert camera.source == SimulatedSource(type="simulated")
    assert settings.bundle(camera) == tmp_path / "bundle"
    assert settings.deadline_ms(camera) == 500.0
    assert camera.limit_percent == 100.0
    assert settings.alert.unjudged == "reject"
    assert settings.inference.engines == ["openvino", "torch"]
    paths = settings.paths
    assert (paths.data, paths.runtime) == (tmp_path / "data", runtime_dir)
    assert (paths.ledger, paths.archive) == (tmp_path / "data/ledger.sqlite", tmp_path / "data/archive")


def test_cameras_override_the_line(settings_file: SettingsFile, tmp_path: Path) -> None:
    extra = '[inference]\nbundle = "common"\n[[cameras]]\nname = "side"\ndeadline_ms = 80\n'
    extra += f'source = {{ type = "folder", path = "{tmp_path}/images", loop = true }}'
    settings = load_settings(settings_file(extra))
    side = settings.camera("side")
    assert settings.bundle(side) == tmp_path / "common"
    assert settings.bundle(settings.camera("top")) == tmp_path / "bundle"
    assert settings.deadline_ms(side) == 80
    assert side.source == FolderSource(type="folder", path=tmp_path / "images", loop=True)
    with pytest.raises(SettingsError, match="no camera 'bottom'; it has top, side"):
        settings.camera("bottom")


def test_relative_paths_start_at_the_file(settings_file: SettingsFile, tmp_path: Path, monkeypatch: Any) -> None:
    path = settings_file(source='type = "folder"\npath = "images/good"')
    monkeypatch.chdir("/")
    settings = load_settings(Path(os.path.relpath(path, "/")))
    source = settings.camera("top").source
    assert isinstance(source, FolderSource)
    assert source.path == tmp_path / "images/good"


def test_the_environment_overrides_the_file(settings_file: SettingsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    path = settings_file("[alert]\ndeadline_ms = 400\ncommit_ms = 7")
    monkeypatch.setenv("EDGE_ALERT__DEADLINE_MS", "300")
    monkeypatch.setenv("EDGE_INFERENCE__ENGINES", '["torch"]')
    monkeypatch.setenv("EDGE_LOG__FORMAT", "json")
    monkeypatch.setenv("EDGE_SHM_DIR", "/dev/shm")
    monkeypatch.setenv("EDGE_ENGINE_CACHE", "/tmp/cache")
    settings = load_settings(path)
    assert (settings.alert.deadline_ms, settings.alert.commit_ms) == (300, 7)
    assert settings.inference.engines == ["torch"]
    assert settings.log.format == "json"


def test_cameras_from_the_environment(settings_file: SettingsFile, monkeypatch: pytest.MonkeyPatch) -> None:
    cameras = '[{"name": "only", "bundle": "b", "source": {"type": "opencv", "device": "/dev/video9"}}]'
    monkeypatch.setenv("EDGE_CAMERAS", cameras)
    settings = load_settings(settings_file())
    assert [camera.name for camera in settings.cameras] == ["only"]
    assert settings.cameras[0].source == OpencvSource(type="opencv", device="/dev/video9")


def test_settings_do_not_change(settings_file: SettingsFile) -> None:
    settings = load_settings(settings_file())
    with pytest.raises(ValueError, match="frozen"):
        settings.alert.deadline_ms = 1.0


def test_slots_follow_rate_and_deadline(settings_file: SettingsFile) -> None:
    settings = load_settings(settings_file(source='type = "simulated"\nrate_hz = 20'))
    camera = settings.camera("top")
    assert settings.ring_slots(camera, 20) == 17  # 20/s x (0.5 + 0.25) s + 1 in flight + 1
    settings = load_settings(settings_file(camera="ring_slots = 40"))
    assert settings.ring_slots(settings.camera("top"), 20) == 40
    with pytest.raises(SettingsError, match=r"ring_slots = 40 is too small: 100 frames per second .* need 77"):
        settings.ring_slots(settings.camera("top"), 100)


@pytest.mark.parametrize(
    ("source", "rate", "size"),
    [
        ('type = "simulated"\nheight_px = 100\nwidth_px = 200', 10.0, 20_000),
        ('type = "simulated"\nheight_px = 100\nwidth_px = 200\npixel_format = "RGB8"\nrate_hz = 3', 3.0, 60_000),
        ('type = "folder"\npath = "x"\nrate_hz = 4', 4.0, None),
        ('type = "opencv"\nfile = "x"', None, None),
        ('type = "opencv"\nurl = "rtsp://host/1"\nrate_hz = 25', 25.0, None),
    ],
)
def test_what_sources_tell(settings_file: SettingsFile, source: str, rate: float | None, size: int | None) -> None:
    loaded = load_settings(settings_file(source=source)).camera("top").source
    assert (loaded.known_rate_hz, loaded.known_frame_bytes) == (rate, size)


def test_folders_of_a_user_and_of_the_system(
    settings_file: SettingsFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = settings_file()
    path.write_text(path.read_text().replace("data_dir", "#").replace("runtime_dir", "#"))
    settings = load_settings(path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    assert settings.paths.data == Path("/var/lib/edge-inspect/press")
    assert settings.paths.runtime == Path("/run/edge-inspect/press")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda path, mode: str(path).startswith(str(tmp_path)))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert settings.paths.data == tmp_path / "share/edge-inspect/press"
    assert settings.paths.runtime == tmp_path / "edge-inspect/press"
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert settings.paths.runtime == Path(f"/tmp/edge-inspect-{os.getuid()}/press")


# --- what is refused, where, and what is said ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where", "says"),
    [
        ("deadline_ms = 5", "alert.deadline_ms", "5 is not allowed; allowed is a number from 10 to 60_000"),
        ('deadline_ms = "soon"', "alert.deadline_ms", "'soon' is not allowed; allowed is a number from 10 to 60_000"),
        ("deadline_ms = nan", "alert.deadline_ms", "nan is not allowed"),
        ("deadline_s = 0.5", "alert.deadline_s", "no such key; did you mean deadline_ms (milliseconds)?"),
        ("deadline = 500", "alert.deadline", "did you mean deadline_ms (milliseconds)?"),
        ("deadlin_ms = 500", "alert.deadlin_ms", "did you mean deadline_ms (milliseconds)?"),
        ("commit_us = 500", "alert.commit_us", "did you mean commit_ms (milliseconds)?"),
        ("volume = 500", "alert.volume", "no such key; allowed here: deadline_ms, unjudged, commit_ms, ledger_days"),
        ('unjudged = "keep"', "alert.unjudged", '\'keep\' is not allowed; allowed is one of "reject", "pass"'),
        ("unjudged = []", "alert.unjudged", "[] is not allowed; allowed is one of"),
        ('endpoint = "udp://a:1"', "alert.endpoint", "'udp://a:1' is not allowed"),
    ],
)
def test_a_fault_in_a_section(settings_file: SettingsFile, text: str, where: str, says: str) -> None:
    path = settings_file(f"\n\n[alert]\n# a comment\n{text}")
    line = path.read_text().splitlines().index(text) + 1
    [fault] = faults_of(path)
    assert fault.startswith(f"{path}:{line}: {where}: ")
    assert says in fault


@pytest.mark.parametrize(
    ("source", "where", "says"),
    [
        ('type = "simulated"\nrate_hz = 0', "cameras[0].source.rate_hz", "a number above 0 to 1_000"),
        ('type = "simulated"\nfps = 3', "cameras[0].source.fps", "did you mean rate_hz (per second)?"),
        ('type = "simulated"\nwidth = 3', "cameras[0].source.width", "did you mean width_px (pixels)?"),
        ('type = "simulated"\ndefect_rate = 1.1', "cameras[0].source.defect_rate", "a number from 0 to 1"),
        ('type = "simulated"\npart_type = "bolt"', "cameras[0].source.part_type", '"tile", "washer", "cap", "mixed"'),
        ('type = "simulated"\npixel_format = "Mono12"', "cameras[0].source.pixel_format", '"Mono8", "RGB8"'),
        ('type = "simulated"\nseed = 1.5', "cameras[0].source.seed", "a whole number from 0 to 4_294_967_295"),
        ('type = "simulated"\nloop = true', "cameras[0].source.loop", "no such key"),
        ('type = "camera"', "cameras[0].source", "type 'camera' is not known; set type to one of \"simulated\""),
        ('path = "x"', "cameras[0].source", 'set type to one of "simulated", "folder", "opencv"'),
        ('type = "folder"', "cameras[0].source.path", "this key is missing; it holds a path (Folder of images"),
        ('type = "folder"\npath = "x"\nloop = "perhaps"', "cameras[0].source.loop", "allowed is true or false"),
        ('type = "opencv"', "cameras[0].source", "give exactly one of url, device and file (none is given)"),
        ('type = "opencv"\nurl = "rtsp://a"\nfile = "b"', "cameras[0].source", "(url, file is given)"),
        ('type = "opencv"\nurl = "a"', "cameras[0].source.url", "rtsp://camera/stream1"),
        ('type = "opencv"\ndevice = "video0"', "cameras[0].source.device", "/dev/video0"),
        ('type = "opencv"\nfile = "a"\npixel_format = "BGR12"', "cameras[0].source.pixel_format", '"BGR8"'),
        (
            'type = "simulated"\npixel_format = "BayerRG8"\nwidth_px = 101',
            "cameras[0].source",
            "BayerRG8 needs an even height_px and width_px",
        ),
    ],
)
def test_a_fault_in_a_source(settings_file: SettingsFile, source: str, where: str, says: str) -> None:
    path = settings_file(source=source)
    lines = path.read_text().splitlines()
    [fault] = faults_of(path)
    file, line, key, text = fault.split(":", 3)
    assert file == str(path)
    assert key.strip() == where
    assert says in text
    named = where.rpartition(".")[2]
    expected = next((text for text in lines if text.startswith(f"{named} ")), "[cameras.source]")
    assert lines[int(line) - 1] == expected


@pytest.mark.parametrize("name", ["Top", "a b", "", "-a", "a-", "a/b", "../a", "ä", "a" * 33, "a.b", "a\\nb"])
def test_names_are_safe_for_files_and_units(settings_file: SettingsFile, name: str) -> None:
    path = settings_file()
    text = path.read_text()
    for old in ('name = "top"', 'name = "press"'):
        path.write_text(text.replace(old, f'name = "{name}"'))
        [fault] = faults_of(path)
        assert "lower-case letters, digits" in fault


def test_all_faults_are_told_at_once_in_order(settings_file: SettingsFile) -> None:
    path = settings_file("[archive]\nmax_gb = -1\n[logs]\n[alert]\ndeadline = 3", camera="speed = 3\nlimit_percent = 0")
    faults = faults_of(path)
    numbers = [int(fault.split(":")[1]) for fault in faults]
    assert numbers == sorted(numbers)
    keys = [fault.split(": ")[1] for fault in faults]
    assert keys == ["cameras[0].speed", "cameras[0].limit_percent", "archive.max_gb", "logs", "alert.deadline"]


def test_cross_checks(settings_file: SettingsFile) -> None:
    extra = '[[cameras]]\nname = "top"\nring_slots = 4\nsource = { type = "simulated" }\n'
    extra += '[inference]\nendpoint = "tcp://box:5555"'
    path = settings_file(extra)
    same, slots, bundle, keys = sorted(faults_of(path), key=lambda fault: fault.split(": ")[1:])[:4] or [""] * 4
    text = "\n".join(sorted((same, slots, bundle, keys)))
    assert "cameras[1].name: 'top' is the name of an earlier camera" in text
    assert "cameras[1]: camera top has no bundle" in text
    assert "ring_slots = 4 is too small: 10 frames per second with a deadline of 500 ms need 10" in text
    assert "inference.endpoint: tcp:// needs keys" in text


def test_a_long_runtime_folder(settings_file: SettingsFile) -> None:
    path = settings_file()
    text = path.read_text().splitlines()
    text[2] = f'runtime_dir = "/run/{"x" * 90}"'
    path.write_text("\n".join(text))
    [fault] = faults_of(path)
    assert fault.startswith(f"{path}:3: line.runtime_dir: ")
    assert "at most 107 are allowed" in fault


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ('[line]\nname = "a"\n[[cameras]\n', 3, "not valid TOML"),
        ("[line]\nname = a", 2, "not valid TOML"),
        ('[line]\nname = "a"\nname = "b"', 3, "not valid TOML"),
        ('[line]\nname = "a', 2, "not valid TOML"),
        ("[line]\nkey = [1,\n2", 3, "not valid TOML"),
    ],
)
def test_a_syntax_error_has_its_line(tmp_path: Path, text: str, line: int, says: str) -> None:
    path = write(tmp_path, text)
    [fault] = faults_of(path)
    assert fault.startswith(f"{path}:{line}:")
    assert says in fault


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    [missing] = faults_of(tmp_path / "line.toml")
    assert "no such file; `edge config example > line.toml` writes one" in missing
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in faults_of(tmp_path / "binary")[0]
    (tmp_path / "folder").mkdir()
    assert "cannot read the settings: Is a directory" in faults_of(tmp_path / "folder")[0]
    deep = write(tmp_path, "a = " + "[" * 50_000)
    assert "nested too deeply" in faults_of(deep)[0] or "not valid TOML" in faults_of(deep)[0]


def test_empty_and_foreign_files(tmp_path: Path) -> None:
    faults = faults_of(write(tmp_path, ""))
    assert any("line: this key is missing" in fault for fault in faults)
    assert any("cameras: this key is missing" in fault for fault in faults)
    faults = faults_of(write(tmp_path, 'line = 3\ncameras = "x"\n_env_file = "y"\nalert = []'))
    assert [fault.split(": ")[1] for fault in faults] == ["line", "cameras", "_env_file", "alert"]
    assert faults_of(write(tmp_path, 'cameras = [3]\nline = {name = "a"}'))[0].split(": ")[1] == "cameras[0]"


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("EDGE_ALERT__DEADLINE_MS", "5", "alert.deadline_ms: '5' is not allowed; allowed is a number from 10"),
        ("EDGE_ALERT__DEADLINE_S", "5", "alert.deadline_s: no such key 'deadline_s'; did you mean deadline_ms"),
        ("EDGE_DEADLINE_MS", "5", "deadline_ms: no such key 'deadline_ms'; allowed here: line, cameras"),
        ("EDGE_CAMERAS", "[", "EDGE_CAMERAS: does not parse"),
        ("EDGE_CAMERAS__0__NAME", "a", "cameras.0: names a key inside a list or value; give the whole list as JSON"),
        ("EDGE_CAMERAS", "[]", "cameras: [] is not allowed"),
        ("EDGE_CAMERAS", '[{"name": "A", "source": {"type": "simulated"}}]', "cameras[0].name: 'A' is not allowed"),
    ],
)
def test_faults_of_variables(
    settings_file: SettingsFile, monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    path = settings_file("[alert]\ndeadline_ms = 400")
    monkeypatch.setenv(name, value)
    faults = faults_of(path)
    assert all(fault.startswith(f"{name}: ") for fault in faults)
    assert any(says in fault for fault in faults)


# --- lines of keys ---------------------------------------------------------------------------------------------------

TRICKY = r"""
# comment [not.a.table]
title = "with # and = and [brackets] \" too" # comment
"quoted key".'it"s' = 1
multi = QQQ
[no table]
key = 1
\QQQ still QQQ""
literal = SSS
[[none]]
SSS'
array = [ # comment ]
  1, [2,
  3], { a = 1, b = { c = "]" } },
]
when = 1979-05-27 07:32:00
[ a . "b.c" ]
x.y.z = {p.q = 1}
[[tables]]
n = 1
[[tables.inner]]
m = 1
[[tables.inner]]
m = 2
[tables.inner.deep]
k = 1
[[tables]]
[[tables.inner]]
m = 3
""".replace("QQQ", 3 * '"').replace("SSS", 3 * "'")


def test_lines_of_a_tricky_file() -> None:
    data = tomllib.loads(TRICKY)
    lines = key_lines(TRICKY)
    assert {path for path in lines if path} == set(paths_of(data))
    text = TRICKY.splitlines()
    assert text[lines[("tables", 0, "inner", 1, "m")] - 1] == "m = 2"
    assert text[lines[("tables", 1, "inner", 0, "m")] - 1] == "m = 3"
    assert text[lines[("tables", 0, "inner", 1, "deep", "k")] - 1] == "k = 1"
    assert text[lines[("array", 1, 1)] - 1].startswith("  3]")
    assert text[lines[("a", "b.c", "x", "y", "z", "p", "q")] - 1].startswith("x.y.z")
    assert text[lines[("literal",)] - 1].startswith("literal")


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from paths_of(item, (*path, key))


keys = st.text("abc-_1", min_size=1, max_size=4) | st.text("a.#=[]\"'\\ é", min_size=1, max_size=4)
scalars = st.integers(-99, 99) | st.booleans() | st.text("ab#=[]{}\"'\\\n,é ", max_size=8) | st.floats(-9, 9)
tables = st.recursive(
    st.dictionaries(keys, scalars, max_size=3),
    lambda inner: st.dictionaries(keys, inner | scalars | st.lists(inner | scalars, max_size=3), max_size=3),
    max_leaves=12,
)


def quoted(text: str) -> str:
    for old, new in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n")):
        text = text.replace(old, new)
    return f'"{text}"'


def inline(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)} = {inline(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[\n" + "".join(f"  {inline(item)}, # {'['}\n" for item in value) + "]"
    return str(value).lower() if isinstance(value, bool) else quoted(value) if isinstance(value, str) else repr(value)


@given(tables, st.booleans())
def test_every_key_of_any_file_has_a_line(data: dict[str, Any], use_headers: bool) -> None:
    text = ""
    for key, value in data.items():
        if not (use_headers and isinstance(value, dict)):
            text += f"{quoted(key)} = {inline(value)}\n"
    for key, value in data.items():
        if use_headers and isinstance(value, dict):
            text += f"[{quoted(key)}] # header\n" + "".join(f"{quoted(k)} = {inline(v)}\n" for k, v in value.items())
    assert tomllib.loads(text) == data
    lines = key_lines(text)
    assert set(lines) == set(paths_of(data))
    for path, line in lines.items():
        if len(path) == 1:
            assert quoted(str(path[0])) in text.splitlines()[line - 1]


# --- the models themselves, the example and the command --------------------------------------------------------------

DIMENSIONLESS = {
    "defect_rate",
    "seed",
    "parts",
    "noise",
    "ring_slots",
    "batch_max",
    "threads",
    "queue_frames",
    "distinct",
    "gain",
    "buffers",
    "binning",
    "encoder_divider",
}

ADDRESSES = {"port", "device_id", "rack", "slot", "realtime_priority"}  # numbers that name something: no quantity
ADDRESSES |= {"outputs_register", "inputs_register", "eject_coil"}
ADDRESSES |= {"outputs_db", "outputs_offset", "inputs_db", "inputs_offset"}
ADDRESSES |= {"ready", "heartbeat", "passed", "rejected", "valid", "fault", "eject", "run", "trigger"}  # GPIO lines


def fields(model: type[BaseModel]) -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        yield f"{model.__name__}.{name}", field
        for inner in settings_faults._members(field.annotation).values():
            yield from fields(inner)


ALL_FIELDS = dict(fields(Settings))


@pytest.mark.parametrize("name", ALL_FIELDS)
def test_every_field_has_description_range_and_unit(name: str) -> None:
    field = ALL_FIELDS[name]
    assert field.description
    assert field.description.endswith(".")
    if settings_faults.plain_type(field.annotation) in (int, float):
        text = settings_faults.allowed(field)
        assert " to " in text
        assert "from " in text or "above " in text
        key = name.rpartition(".")[2]
        assert key in DIMENSIONLESS | ADDRESSES or key.rpartition("_")[2] in settings_faults.UNITS


def test_the_example_shows_every_key_and_passes_its_own_check(tmp_path: Path) -> None:
    text = example()
    settings = load_settings(write(tmp_path, text))
    assert settings.camera("top").source == SimulatedSource(type="simulated")
    for name in ALL_FIELDS:
        key = name.rpartition(".")[2]
        if not settings_faults._members(ALL_FIELDS[name].annotation):  # tables have headers instead
            assert f"\n{key} = " in text or f"\n# {key} = " in text
    assert max(map(len, text.splitlines())) <= 100


EXCLUSIVE = {key: {key, ""} for key in ("url", "device", "file")} | {"loop": {"file", ""}}
OF_A_DEVICE = ("width_px", "height_px", "fourcc")


def _alternatives(source: str) -> tuple[str, ...]:
    """Keys of a source of which one has to be chosen."""
    if '"opencv"' in source:
        return ("url", "device", "file")
    return ("address", "serial") if '"gige"' in source else ("",)


def _excluded(key: str, only: str) -> bool:
    if only in ("address", "serial"):
        return key in ("address", "serial") and key != only
    if only == "" or key not in OF_A_DEVICE:
        return key in EXCLUSIVE and only not in EXCLUSIVE[key]
    return only != "device"


def test_every_commented_value_of_the_example_is_allowed(tmp_path: Path) -> None:
    """Uncomments all keys, one source at a time; some, such as url, device and file, exclude one another."""
    blocks = [block for block in example().split("\n\n") if "\n# [plc" not in block]
    sources = [block for block in blocks if "cameras.source]" in block]
    assert len(sources) == 5
    for source in sources:
        for only in _alternatives(source):
            chosen = [block for block in blocks if block not in sources]
            chosen.insert(3, source)
            lines = []
            for line in "\n\n".join(chosen).splitlines():
                bare = line.removeprefix("# ")
                key = bare.partition(" = ")[0]
                if _excluded(key, only) or key in ("group", "step_counts"):  # these need another camera, another key
                    continue
                if not re.match(r"\[+[a-z.]+\]+$|[a-z_]+ = ", bare):
                    continue
                lines.append(bare.replace("ring_slots = 16", "ring_slots = 100"))
            settings = load_settings(write(tmp_path, "\n".join(line for line in lines if line)))
            assert settings.cameras[0].source.type in source


def test_the_check_command(settings_file: SettingsFile, tmp_path: Path) -> None:
    runner = CliRunner()
    path = settings_file(source='type = "folder"\npath = "images"')
    result = runner.invoke(cli_config.app, ["check", str(path)])
    assert result.exit_code == 0
    assert f"warning: camera top: bundle {tmp_path}/bundle does not exist" in result.stderr
    assert f"warning: camera top: source.path: {tmp_path}/images does not exist" in result.stderr
    assert "line press, cameras top" in result.stdout
    (tmp_path / "bundle").mkdir()
    (tmp_path / "images").mkdir()
    assert runner.invoke(cli_config.app, ["check", str(path)]).stderr == ""
    path = settings_file("[alert]\ndeadline_s = 1\n[logs]")
    result = runner.invoke(cli_config.app, ["check", str(path)])
    assert result.exit_code == 1
    assert "did you mean deadline_ms" in result.stderr
    assert "2 faults: not usable" in result.stderr


def test_the_check_command_warns_of_too_little_shared_memory(settings_file: SettingsFile) -> None:
    source = 'type = "simulated"\nrate_hz = 1000\nheight_px = 8192\nwidth_px = 8192\npixel_format = "RGB8"'
    path = settings_file(source=source, camera="deadline_ms = 10_000")
    result = CliRunner().invoke(cli_config.app, ["check", str(path)])
    assert result.exit_code == 0
    assert "the cameras' rings need" in result.stderr


def test_the_example_command(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli_config.app, ["example"])
    assert result.exit_code == 0
    assert result.stdout == example()


def test_enumerations_stay_in_step() -> None:
    kinds = settings_faults._members(CameraSettings.model_fields["source"].annotation)
    assert set(kinds) == {"simulated", "folder", "opencv", "gige", "gentl"}
    assert settings_faults.allowed(SimulatedSource.model_fields["pixel_format"]).count('"') == 2 * len(PixelFormat)
