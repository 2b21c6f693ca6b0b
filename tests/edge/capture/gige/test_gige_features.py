"""What cannot be set is refused with the feature's name, the value and what is allowed; triggers and encoders."""

from __future__ import annotations

import ctypes

import pytest

from edge.capture.aravis.camera import Camera
from edge.capture.aravis.library import library
from edge.capture.gige import GigeSource
from edge.errors import SourceAway, SourceError


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"features": {"Gama": 1.0}}, r"there is no feature Gama"),
        ({"features": {"GainRow": 1}}, r"no feature GainRow; `edge camera features` lists them"),
        ({"features": {"Widht": 9}}, r"no feature Widht; did you mean Width\?"),
        ({"gain": 1000.0}, r"GainRaw = 1000 is not allowed; allowed is a whole number from 0 to 10"),
        ({"gain": 1.5}, r"GainRaw = 1\.5 is not allowed; allowed is a whole number"),
        ({"exposure_us": 5.0}, r"ExposureTimeAbs = 5 is not allowed; allowed is a number from 10 to 10000000"),
        ({"width_px": 4096}, r"Width = 4096 is not allowed; allowed is a whole number from 1 to 2048"),
        ({"pixel_format": "Mono12p"}, r'PixelFormat = "Mono12p" is not allowed; allowed is one of .*Mono8'),
        ({"features": {"GainAuto": "Sometimes"}}, r'GainAuto = "Sometimes" .*one of Off, Once, Continuous'),
        ({"features": {"TestBoolean": 1}}, r"TestBoolean = 1 is not allowed; allowed is true or false"),
        ({"features": {"TestRegister": True}}, r"TestRegister = true is not allowed; allowed is a whole number"),
        ({"features": {"SensorWidth": 5}}, r"SensorWidth = 5: this feature can only be read"),
        ({"features": {"AcquisitionStart": False}}, r"AcquisitionStart = false .* true, which runs it"),
        ({"trigger": "line", "trigger_line": "Line7"}, r'TriggerSource = "Line7" is not .* one of Line0, Software'),
        ({"trigger": "line", "trigger_edge": "falling"}, r'TriggerActivation = "FallingEdge" .* RisingEdge'),
        ({"trigger": "line", "trigger_delay_us": 5.0}, r"trigger_delay_us = 5: this camera has no TriggerDelay"),
        ({"trigger": "encoder"}, r"there is no feature EncoderSelector"),
        ({"encoder_chunk": "EncoderValue"}, r"there is no feature ChunkModeActive"),
        ({"packet_size_bytes": 220, "width_px": 2048, "features": {"Width": 64}}, r"do not hold it"),
    ],
)
def test_what_a_camera_does_not_have_or_allow_is_named(fake_camera, gige_settings, keys, said):
    fake_camera()
    source = GigeSource(gige_settings(**keys))
    with pytest.raises(SourceError, match=said) as caught:
        source.open()
    assert not isinstance(caught.value, SourceAway), "waiting would not help"
    source.close()


def test_a_trigger_of_an_earlier_session_is_turned_off(fake_camera, opened, gige_settings):
    fake_camera()
    first = opened(trigger="line", rate_hz=10.0)
    assert first.take(0.3) is None
    first.close()
    taker = opened()
    taker.until(lambda: taker.count("ok") >= 2)


ENCODER = """
<Enumeration Name="EncoderSelector"><EnumEntry Name="Encoder0"><Value>0</Value></EnumEntry>
<pValue>R0</pValue></Enumeration>
<Enumeration Name="EncoderSourceA"><EnumEntry Name="Line1"><Value>1</Value></EnumEntry><pValue>R1</pValue></Enumeration>
<Enumeration Name="EncoderSourceB"><EnumEntry Name="Line2"><Value>2</Value></EnumEntry><pValue>R2</pValue></Enumeration>
<Integer Name="EncoderDivider"><pValue>R3</pValue><Min>1</Min><Max>1000</Max></Integer>
<Float Name="TriggerDelay"><pValue>R4</pValue><Min>0</Min><Max>1000</Max></Float>
"""


def _register(number: int) -> str:
    return (
        f'<IntReg Name="R{number}"><Address>0x{0x8000 + 4 * number:x}</Address><Length>4</Length>'
        "<AccessMode>RW</AccessMode><pPort>Device</pPort><Sign>Unsigned</Sign><Endianess>BigEndian</Endianess></IntReg>"
    )


@pytest.fixture
def encoder_camera(fake_camera, gige_settings, tmp_path):
    """Aravis' camera with the features of an encoder, which are plain memory to it."""
    camera = fake_camera()
    probe = Camera(gige_settings())
    size = ctypes.c_size_t()
    get = library()._aravis.arv_device_get_genicam_xml
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.POINTER(ctypes.c_size_t)]
    text = ctypes.string_at(get(probe._device, ctypes.byref(size)), size.value).decode()
    probe.close()
    more = ENCODER + "".join(map(_register, range(5)))
    text = text.replace("</RegisterDescription>", more + "</RegisterDescription>")
    text = text.replace(
        '<EnumEntry Name="Software" NameSpace="Standard">',
        '<EnumEntry Name="Encoder0" NameSpace="Standard"><Value>7</Value></EnumEntry>'
        '<EnumEntry Name="Software" NameSpace="Standard">',
    )
    description = tmp_path / "camera.xml"
    description.write_text(text)
    camera.switch_off()
    camera.add_option("-g", str(description))
    camera.switch_on()
    return camera


def test_an_encoder_divides_its_counts_into_triggers(encoder_camera, opened):
    taker = opened(trigger="encoder", rate_hz=10.0, encoder_divider=250, trigger_delay_us=40.0)
    features = taker.source._connection._camera.features
    names = ("EncoderSelector", "EncoderSourceA", "EncoderSourceB", "EncoderDivider", "TriggerDelay")
    assert [features.get(name) for name in names] == ["Encoder0", "Line1", "Line2", 250, 40.0]
    assert [features.get(name) for name in ("TriggerSource", "TriggerMode")] == ["Encoder0", "On"]
    assert taker.take(0.3) is None


def test_a_divider_out_of_range_is_named(encoder_camera, gige_settings):
    source = GigeSource(gige_settings(trigger="encoder", rate_hz=10.0, encoder_divider=5000))
    with pytest.raises(SourceError, match=r"EncoderDivider = 5000 is not allowed; .* from 1 to 1000"):
        source.open()
