"""A camera behind a GenTL producer: the simulator that the genicam package brings (no trigger, no timestamps)."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from edge.capture.gentl import GentlSource
from edge.capture.sources import open_source
from edge.errors import SourceAway, SourceError
from edge.messages import FrameStatus, now_ns
from edge.settings_sources import GentlSource as Settings

genicam = pytest.importorskip("genicam", reason="harvesters and genicam are not installed (extra gentl)")
pytest.importorskip("harvesters.core", reason="harvesters is not installed (extra gentl)")
PRODUCER = Path(genicam.__file__).with_name("viky.cti")
if not PRODUCER.is_file():
    pytest.skip("this genicam package has no simulator", allow_module_level=True)


def settings(**keys: object) -> Settings:
    usual = {"producer": PRODUCER, "serial": "1", "width_px": 160, "height_px": 120, "rate_hz": 50.0}
    return Settings.model_validate({"type": "gentl", **usual, **keys})


def test_frames_arrive_in_order_each_with_its_number(start):
    source = open_source(settings())
    info, ring = start(source, slots=12)
    assert info.max_bytes == 160 * 120
    assert "Viky (1), 160 x 120 Mono8" in info.description
    grabs, pictures = [], []
    before, end = now_ns(), time.monotonic() + 20
    while len(grabs) < 20 and time.monotonic() < end:
        grab = source.next(0.2)
        if grab is None:
            continue
        grabs.append(grab)
        if grab.slot is not None:
            pictures.append(grab.slot.buffer[: 160 * 120].copy())
            ring.commit(grab.slot)
    assert len(grabs) == 20
    assert all(b.camera_frame - a.camera_frame == 1 for a, b in itertools.pairwise(grabs) if a.camera_frame)
    times = [grab.trigger_ns for grab in grabs]
    assert before < times[0] < times[-1] < now_ns()
    assert times == sorted(times)
    assert sum(grab.status is FrameStatus.OK for grab in grabs) >= 18
    assert np.ptp(pictures[0]) > 20, "a picture, not an empty buffer"
    assert any(not np.array_equal(pictures[0], later) for later in pictures[1:]), "the ball moves"
    assert source.health()[0] == ""


def test_a_camera_that_falls_silent_is_opened_anew(start):
    source = open_source(settings(stall_s=0.3, reconnect_max_s=0.3))
    _, ring = start(source, slots=12)
    assert isinstance(source, GentlSource)
    frames = lost = 0
    end = time.monotonic() + 30
    while (frames < 5 or source.health()[1]["reconnects"] == 0) and time.monotonic() < end:
        grab = source.next(0.1)
        if grab is None:
            continue
        lost += grab.status is FrameStatus.LOST
        if grab.slot is not None:
            frames += 1
            ring.commit(grab.slot)
        if frames == 3 and source._connection is not None:
            source._connection._acquirer.remote_device.node_map.AcquisitionStop.execute()
    assert source.health()[1]["reconnects"] >= 1
    assert source.health()[0] == ""
    assert lost >= 5, "parts that passed meanwhile"


@pytest.mark.parametrize(
    ("keys", "error", "said"),
    [
        ({"serial": None}, SourceError, "finds several cameras: 0 .*; set serial to one of them"),
        ({"serial": "77"}, SourceAway, "no camera with the serial number or name '77'; it finds: 0 "),
        ({"producer": "gone.cti"}, SourceError, "there is no such GenTL producer"),
        ({"producer": __file__}, SourceError, "this GenTL producer does not load"),
        ({"width_px": 4000}, SourceError, r"Width = 4000 is not allowed; allowed is a whole number from 100 to 800"),
        ({"pixel_format": "BayerRG8"}, SourceError, r'PixelFormat = "BayerRG8" .* RGBa8, Mono8'),
        ({"features": {"BouncingBallSize": "big"}}, SourceError, r'BouncingBallSize = "big" is not allowed'),
        ({"features": {"ExposureTime": 5.0}}, SourceError, "there is no feature ExposureTime"),
    ],
)
def test_what_cannot_be_is_named(keys, error, said):
    with pytest.raises(error, match=said):
        GentlSource(settings(**keys)).open()


WITHOUT_HARVESTERS = """
import sys
sys.modules["harvesters"] = None
from edge.capture.sources import open_source
from edge.errors import SourceError
from edge.settings_sources import GentlSource
try:
    open_source(GentlSource(type="gentl", producer="x.cti")).open()
except SourceError as error:
    print(error)
"""


def test_without_harvesters_the_extra_is_named():
    done = subprocess.run([sys.executable, "-c", WITHOUT_HARVESTERS], capture_output=True, text=True, timeout=60)
    assert "pip install 'edge-inspect[gentl]'" in done.stdout, done.stderr
