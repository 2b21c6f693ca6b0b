"""What all sections of the settings share, and what every kind of source tells."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

base_folder: ContextVar[Path] = ContextVar("base_folder")  # relative paths in a settings file start here


def _resolve(path: Path) -> Path:
    return (base_folder.get(Path()) / path.expanduser()).absolute()


FilePath = Annotated[Path, AfterValidator(_resolve)]
Rate = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]


class Section(BaseModel):
    """A table of the settings file: unknown keys are refused, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class SourceSection(Section, ABC):
    """What every kind of source tells, as far as it is known before the device is opened."""

    @property
    @abstractmethod
    def known_rate_hz(self) -> float | None:
        """The most parts per second that come, where the settings fix it."""

    @property
    def known_frame_bytes(self) -> int | None:
        """Bytes of the largest frame, where the settings fix it."""
        return None

    @property
    def slots_held(self) -> int:
        """How many slots of the ring the source holds for writing at once."""
        return 1

    def missing(self) -> list[tuple[str, Path]]:
        """Keys whose file or folder does not exist now."""
        return []
