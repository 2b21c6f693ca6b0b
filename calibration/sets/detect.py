"""Which layout a folder has."""

from __future__ import annotations

from pathlib import Path

from calibration.errors import DataError
from calibration.sets.folders import images_in, read_folders, subfolders
from calibration.sets.line import LEDGER, read_line
from calibration.sets.model import Dataset
from calibration.sets.published import VISA_SPLIT, read_real_iad, read_visa

_LOOKED_FOR = f"""\
  MVTec AD, MPDD, BTAD:  train/good and test/<kind> (ok and ko in BTAD), here or in folders of classes
  VisA:                  {VISA_SPLIT}, or its conversion below 1cls
  Real-IAD:              realiad_jsons/<class>.json with meta, train and test
  plain folders:         good (or ok, normal) beside folders named by the defects
  a line's data folder:  {LEDGER} and archive"""


def open_dataset(path: Path) -> Dataset:
    """Recognises the layout of `path` and lists its images; no pixel is read.

    Raises `DataError` where there is no such folder, where no layout fits (all that was looked for is listed), and
    where a layout's own files are damaged.
    """
    if not path.exists():
        raise DataError(f"{path}: there is no such folder; give the folder of a data set")
    for read in (read_line, read_visa, read_real_iad, read_folders):
        if path.is_dir() or read is read_line:
            dataset = read(path)
            if dataset is not None:
                return dataset
    raise DataError(f"{path}: no data set is recognised; {_what_is_there(path)}. Looked for:\n{_LOOKED_FOR}")


def _what_is_there(path: Path) -> str:
    if not path.is_dir():
        return "this is a file"
    folders = [folder.name for folder in subfolders(path)]
    if not folders and not any(path.iterdir()):
        return "the folder is empty"
    shown = ", ".join(folders[:8]) + (" and more" if len(folders) > 8 else "")
    images = len([image for image in images_in(path) if image.parent == path])
    return f"it holds {f'the folders {shown}' if folders else 'no folders'} and {images} images of its own"
