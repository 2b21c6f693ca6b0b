import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from calibration import cli
from calibration.errors import FitError, TooFewImages
from calibration.importing import ImportOptions, import_head
from pipelines.bundle import Bundle
from pipelines.encoders import save
from pipelines.encoders.config import EncoderConfig
from pipelines.encoders.vit import Encoder
from pipelines.errors import InspectError

ENCODER = EncoderConfig(
    name="tiny", family="dinov3", patch=16, width=192, depth=4, heads=3, hidden=384, rope_base=100.0, registers=4
)


def silent(what: str, done: int, total: int, note: str) -> None:
    pass


@pytest.fixture
def files(tmp_path, projector_weights):
    save(Encoder(ENCODER).init_weights(2), tmp_path / "encoder.safetensors")
    save_file(projector_weights, tmp_path / "head.safetensors")
    return tmp_path / "head.safetensors", tmp_path / "encoder.safetensors"


def options(files, folder, out, **changes) -> ImportOptions:
    head, encoder = files
    return ImportOptions("foundad", head, folder, out, **{"encoder": encoder, "size": (64, 64), **changes})


def test_a_published_head_becomes_a_bundle_with_a_limit_of_its_own(files, make_parts, tmp_path, projector_weights):
    folder = make_parts(24)
    summary = import_head(options(files, folder, tmp_path / "b", rate=0.05), silent, print)
    (choice,) = summary.choices
    assert choice.guaranteed
    assert choice.scores == 24
    bundle = Bundle.open(tmp_path / "b")
    pipeline = bundle.pipeline()
    stored = pipeline.state_dict()["head.projector.embed.weight"]
    assert torch.equal(stored, projector_weights["predictor.predictor_embed.weight"])
    with torch.inference_mode():
        scores = torch.cat([pipeline(torch.from_numpy(frame)[None])[0] for frame in summary.images.frames(range(24))])
    assert float((scores > choice.limit).float().mean()) <= 0.05


def test_what_stands_in_the_way_of_an_import_is_named(files, make_parts, tmp_path):
    folder = make_parts(3)
    with pytest.raises(TooFewImages, match="smallest is 25 %; bring 99"):
        import_head(options(files, folder, tmp_path / "b", guarantee=True), silent, print)
    with pytest.raises(InspectError, match="no such file"):
        import_head(options(files, folder, tmp_path / "b", encoder=tmp_path / "none.safetensors"), silent, print)
    (tmp_path / "there").mkdir()
    with pytest.raises(FitError, match="exists already"):
        import_head(options(files, folder, tmp_path / "there"), silent, print)
    assert not (tmp_path / "b").exists()


def test_the_command_imports(files, make_parts, tmp_path):
    head, encoder = files
    arguments = ["import", "--method", "foundad", "--head", head, "--encoder", encoder, "--size", 64]
    arguments += ["--images", make_parts(3), "--out", tmp_path / "b"]
    result = CliRunner().invoke(cli.app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    assert "No guarantee" in result.output
    assert Bundle.open(tmp_path / "b").manifest.provenance["made_by"] == "calibrate import"
