"""Official weights: which files there are, and the user's own store of converted ones.

The store is `<data folder>/weights/<name>.safetensors`; the data folder is the user's (`~/.local/share/edge-inspect` on
Linux), or the one that EDGE_INSPECT_DATA_HOME names. Nothing here needs torch until a file is converted or opened.

Checksums are those that were found published (DINOv2: the full SHA-256; DINOv3: its first eight digits, which the owner
puts into the file's name); where the owner published none, only the content's names, shapes and numbers are checked.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from .errors import WeightsError
from .weights_download import DownloadError, Progress, Refused, Source, Unreachable, download, sha256_of

if TYPE_CHECKING:
    from .encoders import Encoder

DATA_HOME_VARIABLE = "EDGE_INSPECT_DATA_HOME"
TOKEN_VARIABLE = "HF_TOKEN"  # noqa: S105 - the variable's name
"""Environment variable with the access token of owners who demand one."""

SHIPPED = "compact"
"""The encoder that is part of the package and needs no file."""


@dataclass(frozen=True)
class Published:
    """One official file."""

    name: str
    """Of the encoder: a key of `encoders.CONFIGS`."""
    file: str
    """What its owner calls the file; a file carried over by hand keeps this name."""
    url: str
    """What `pull` fetches."""
    megabytes: int
    """About; millions of bytes."""
    licence: str
    page: str
    """Where its owner offers `file`."""
    sha256: str | None = None
    """SHA-256 of `file`, or its first digits; None where none was found published."""
    gated: bool = False
    """True when the owner wants the licence accepted and a token."""

    fetched: str | None = None
    """Name of what `url` gives, where that is another form of the same weights than `file`."""

    @property
    def source(self) -> Source:
        """As `download` wants it; what is half as large again cannot be the file."""
        return Source(self.url, None if self.fetched else self.sha256, int(self.megabytes * 1.5e6))


def _dino(name: str, file: str, megabytes: int) -> Published:
    return Published(
        name=name,
        file=f"{file}.pth",
        url=f"https://dl.fbaipublicfiles.com/dino/{file}/{file}.pth",
        megabytes=megabytes,
        licence="Apache-2.0",
        page="https://github.com/facebookresearch/dino",
    )


def _dinov2(name: str, megabytes: int, sha256: str) -> Published:
    folder = name.removesuffix("_reg4")
    return Published(
        name=name,
        file=f"{name}_pretrain.pth",
        url=f"https://dl.fbaipublicfiles.com/dinov2/{folder}/{name}_pretrain.pth",
        megabytes=megabytes,
        licence="Apache-2.0",
        page="https://github.com/facebookresearch/dinov2",
        sha256=sha256,
    )


def _dinov3(name: str, megabytes: int, digits: str) -> Published:
    repository = f"{name.replace('_', '-')}-pretrain-lvd1689m"
    return Published(
        name=name,
        file=f"{name}_pretrain_lvd1689m-{digits}.pth",
        url=f"https://huggingface.co/facebook/{repository}/resolve/main/model.safetensors",
        megabytes=megabytes,
        licence="DINOv3 License",
        page="https://ai.meta.com/resources/models-and-libraries/dinov3-downloads",
        sha256=digits,
        gated=True,
        fetched=f"{repository}.safetensors",  # its owner offers the .pth by personal links only
    )


def _clip(name: str, repository: str, megabytes: int) -> Published:
    return Published(
        name=name,
        file=f"{repository}.bin",
        url=f"https://huggingface.co/openai/{repository}/resolve/main/pytorch_model.bin",
        megabytes=megabytes,
        licence="MIT",
        page=f"https://huggingface.co/openai/{repository}",
    )


CATALOGUE: dict[str, Published] = {
    entry.name: entry
    for entry in (
        _dino("dino_vits16", "dino_deitsmall16_pretrain", 87),
        _dino("dino_vits8", "dino_deitsmall8_pretrain", 87),
        _dino("dino_vitb16", "dino_vitbase16_pretrain", 343),
        _dino("dino_vitb8", "dino_vitbase8_pretrain", 343),
        _dinov2("dinov2_vits14", 88, "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9"),
        _dinov2("dinov2_vitb14", 346, "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73"),
        _dinov2("dinov2_vitl14", 1218, "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428"),
        _dinov2("dinov2_vits14_reg4", 88, "f433177089a681826f849f194ece3bb48f4d63fb38d32fc837e3dc7a4e5641fb"),
        _dinov2("dinov2_vitb14_reg4", 346, "73182a088cf94833c94b1666d1c99e02fe87e2007bff57b564fb6206e25dba71"),
        _dinov2("dinov2_vitl14_reg4", 1218, "36e4deffbaef061a2576705b0c36f93621e2ae20bf6274694821b0b492551b51"),
        _dinov3("dinov3_vits16", 86, "08c60483"),
        _dinov3("dinov3_vits16plus", 115, "4057cbaa"),
        _dinov3("dinov3_vitb16", 343, "73cec8be"),
        _dinov3("dinov3_vitl16", 1213, "8aa4cbdd"),
        _clip("clip_vitb16", "clip-vit-base-patch16", 599),
        _clip("clip_vitl14", "clip-vit-large-patch14", 1711),
        _clip("clip_vitl14_336", "clip-vit-large-patch14-336", 1712),
    )
}
"""Every official file, by the name of its encoder."""


def data_home() -> Path:
    """The user's data folder."""
    named = os.environ.get(DATA_HOME_VARIABLE)
    return Path(named).expanduser() if named else platformdirs.user_data_path("edge-inspect")


def stored_path(name: str) -> Path:
    """Where converted weights of this name are, or would be."""
    return data_home() / "weights" / f"{name}.safetensors"


def carried_path(entry: Published) -> Path:
    """Where an official file is put that was carried over by hand."""
    return data_home() / "weights" / "downloads" / entry.file


def fetched_path(entry: Published) -> Path:
    """Where `pull` keeps what it fetches until it is converted."""
    return carried_path(entry).with_name(entry.fetched or entry.file)


def stored() -> dict[str, Path]:
    """All converted weights, by name."""
    return {path.stem: path for path in sorted((data_home() / "weights").glob("*.safetensors"))}


def open_encoder(what: str | Path) -> Encoder:
    """The encoder that a user means: `compact`, a name in the store, or a file of weights.

    WeightsError when there is none, saying how to get it.
    """
    from .encoders import compact, from_checkpoint

    name = str(what)
    if name == SHIPPED:
        return compact()
    if re.fullmatch(r"\w+", name) and not Path(name).exists():
        if stored_path(name).is_file():
            return from_checkpoint(stored_path(name))
        if name in CATALOGUE:
            raise WeightsError(f"the weights of {name} are not here yet: `edge weights pull {name}` fetches them")
        known = ", ".join(dict.fromkeys((SHIPPED, *stored(), *CATALOGUE)))
        raise WeightsError(f"{name!r} is neither a file nor an encoder; there are {known}")
    return from_checkpoint(Path(what))


def add(file: Path, name: str | None = None, catalogue: Mapping[str, Published] = CATALOGUE) -> tuple[str, Path]:
    """Verifies a file of weights, converts it and puts it into the store; returns (name, path in the store).

    A file that bears the name of an official one must have its checksum. `name`: what the weights must be. WeightsError
    when the file is damaged, unknown or another than it says.
    """
    from .encoders import from_checkpoint, save

    official = next((entry for entry in catalogue.values() if entry.file == file.name), None)
    if official is not None and official.sha256 is not None and file.is_file():
        found = sha256_of(file)
        if not found.startswith(official.sha256):
            raise WeightsError(
                f"{file}: has the SHA-256 {found}, the official file of this name has {official.sha256}; it is damaged "
                f"or another file. Get it anew from {official.page}"
            )
    encoder = from_checkpoint(file, name=name or (official.name if official else None))
    path = stored_path(encoder.config.name)
    save(encoder, path)
    return encoder.config.name, path


def pull(
    name: str,
    progress: Progress | None = None,
    catalogue: Mapping[str, Published] = CATALOGUE,
    timeout_s: float = 30.0,
    pause_s: float = 1.0,
) -> Path:
    """Fetches official weights, verifies and converts them; returns the path in the store.

    Goes on from an interrupted try, and takes a file that was carried to `carried_path` instead of fetching it.
    WeightsError or DownloadError; without a connection the text says which file to carry over and where to put it.
    """
    if name == SHIPPED:
        raise WeightsError(f"{SHIPPED} is part of the package: there is nothing to fetch")
    if name not in catalogue:
        raise WeightsError(f"no official weights are called {name!r}; there are {', '.join(catalogue)}")
    entry, token = catalogue[name], os.environ.get(TOKEN_VARIABLE)
    path = carried_path(entry)
    if not path.is_file():
        path = fetched_path(entry)
    if not path.is_file():
        try:
            download(entry.source, path, progress, token if entry.gated else None, timeout_s, pause_s)
        except Unreachable as error:
            raise Unreachable(f"{error}. {_by_hand(entry)}") from None
        except Refused as error:
            raise Refused(_refused(entry, error, bool(token)), error.status) from None
    _, stored_at = add(path, name, catalogue)
    path.unlink(missing_ok=True)
    return stored_at


def _by_hand(entry: Published) -> str:
    what = f"{entry.file} from {entry.page} (accept the {entry.licence} there)" if entry.gated else entry.url
    return (
        f"Without a network: fetch {what}, about {entry.megabytes} MB, on another computer, carry it over as "
        f"{carried_path(entry)} and run `edge weights pull {entry.name}` again"
    )


def _refused(entry: Published, error: Refused, with_token: bool) -> str:
    if not entry.gated:
        return f"{error}; its owner may have moved it, see {entry.page}. {_by_hand(entry)}"
    token = f"the token in {TOKEN_VARIABLE} was not accepted" if with_token else f"set {TOKEN_VARIABLE} to a token"
    return (
        f"{error}. The owner of {entry.name} demands that you accept the {entry.licence} at "
        f"{entry.url.partition('/resolve/')[0]} and fetch it with your access token: {token}. {_by_hand(entry)}"
    )


__all__ = [
    "CATALOGUE",
    "SHIPPED",
    "DownloadError",
    "Published",
    "Unreachable",
    "add",
    "carried_path",
    "data_home",
    "fetched_path",
    "open_encoder",
    "pull",
    "stored",
    "stored_path",
]
