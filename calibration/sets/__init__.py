"""Labelled image sets: good images to fit on, good and defective ones to test with, masks where there are any.

`open_dataset(path)` recognises the layout by what lies there:

* MVTec AD, MPDD, BTAD and VisA's MVTec-like conversion: `<class>/train/good`, `<class>/test/<kind>`,
  `<class>/ground_truth/<kind>` (`ok` and `ko` in BTAD); one class folder, or the root of many (also below `1cls`).
* VisA as published: `split_csv/1cls.csv` beside the class folders.
* Real-IAD: `realiad_jsons/.../<class>.json` beside `realiad_<size>/<class>`.
* Plain folders: `good` (or `ok`, `normal`) and one folder per kind of defect; masks below `masks` or `ground_truth`.
* Images only, without any folder: good ones to fit on.
* A line's own data folder: `ledger.sqlite` and `archive`, labelled by operators.

Opening reads no pixels; `calibration.data_check` does.
"""

from calibration.sets.detect import open_dataset
from calibration.sets.masks import read_mask
from calibration.sets.model import GOOD, ClassSet, Dataset, Item

__all__ = ["GOOD", "ClassSet", "Dataset", "Item", "open_dataset", "read_mask"]
