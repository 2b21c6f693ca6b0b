"""`edge camera` and the capture process, with a camera that is a program of its own."""

from __future__ import annotations

import json

import cv2
import pytest
from typer.testing import CliRunner

from edge import cli_camera
from edge.errors import SettingsError, SourceError

runner = CliRunner()


def run(*words: str):
    return runner.invoke(cli_camera.app, list(words))


def test_list_finds_cameras_by_asking_the_network(fake_camera):
    fake_camera()
    found = json.loads(run("list", "--json").stdout)
    assert [(camera["address"], camera["serial"], camera["reachable"]) for camera in found] == [
        ("127.0.0.1", "GV01", True)
    ]
    assert "GV01" in run("list").stdout


def test_list_without_any_camera_says_what_to_look_at(camera_network, aravis):
    if not camera_network.own:
        pytest.skip("there may be real cameras on this computer's network")
    assert "no GigE Vision camera answers" in run("list").stdout


def test_show_tells_who_the_camera_is_and_changes_nothing(fake_camera):
    fake_camera()
    before = json.loads(run("show", "127.0.0.1", "--json").stdout)
    assert before["serial"] == "GV01"
    assert before["width_px"] == 512
    assert before["in_use_by_another_program"] is False
    assert "Mono16" in before["pixel_formats"]
    assert "512" in run("show", "127.0.0.1").stdout
    assert json.loads(run("show", "GV01", "--json").stdout) == before


def test_features_lists_all_or_some(fake_camera):
    fake_camera()
    every = {feature["name"]: feature for feature in json.loads(run("features", "127.0.0.1", "--json").stdout)}
    assert every["Width"]["allowed"] == "a whole number from 1 to 2048"
    assert every["PixelFormat"]["value"] == "Mono8"
    assert every["DeviceVendorName"]["access"] == "read"
    assert every["TriggerSoftware"]["kind"] == "command"
    table = run("features", "127.0.0.1", "Width", "GainRaw").stdout
    assert "GainRaw" in table
    assert "Height" not in table


def test_grab_writes_the_pictures_a_line_would_get(fake_camera, tmp_path, settings_file):
    fake_camera()
    line = settings_file(
        source='type = "gige"\naddress = "127.0.0.1"\nwidth_px = 96\nheight_px = 64\npixel_format = "RGB8"\n'
        'trigger = "software"\nrate_hz = 10'
    )
    result = run("grab", f"{line}:top", "--out", str(tmp_path / "out"), "--count", "3", "--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout[result.stdout.index("[\n") :])
    assert [row["status"] for row in rows] == ["ok"] * 3
    for row in rows:
        picture = cv2.imread(row["file"], cv2.IMREAD_UNCHANGED)
        assert picture.shape == (64, 96, 3)


def test_grab_takes_any_source_of_a_line(tmp_path, settings_file):
    line = settings_file(source='type = "simulated"\nheight_px = 64\nwidth_px = 80\nrate_hz = 50')
    assert run("grab", str(line), "--out", str(tmp_path / "out"), "--count", "2").exit_code == 0
    pictures = [cv2.imread(str(file), cv2.IMREAD_UNCHANGED) for file in sorted((tmp_path / "out").iterdir())]
    assert [picture.shape for picture in pictures] == [(64, 80), (64, 80)]


def test_what_is_no_camera_is_named(camera_network, settings_file):
    with pytest.raises(SettingsError, match="is no IPv4 address"):
        raise run("show", "1.2.3.04").exception
    line = settings_file()
    with pytest.raises(SourceError, match='only a "gige" camera'):
        raise run("show", f"{line}:top").exception
    with pytest.raises(SettingsError, match="has no camera 'side'"):
        raise run("show", f"{line}:side").exception
