"""A folder that `datasets.Dataset.save_to_disk` wrote: which of its files hold the rows.

dataset/
    data-00000-of-00002.arrow  data-00001-of-00002.arrow  dataset_info.json  state.json
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

STATE, SPLITS = "state.json", "dataset_dict.json"


def saved_files(folder: Path) -> list[Path] | None:
    """The files of a saved data set in the order of its rows; None where the folder is none.

    Raises ValueError for several splits in one folder: which of them is wanted must be said, for one is often the test.
    """
    if (folder / SPLITS).is_file() and (names := _held(folder / SPLITS).get("splits")):
        shown = ", ".join(str(folder / str(name)) for name in names) if isinstance(names, list) else repr(names)
        raise ValueError(f"{folder} holds several splits of one data set: name one of them: {shown}")
    if not ((folder / STATE).is_file() and (folder / "dataset_info.json").is_file()):
        return None
    held = _held(folder / STATE).get("_data_files")
    if held is None:
        return None
    try:
        names = [entry["filename"] for entry in msgspec.convert(held, list[dict[str, str]])]
        if any(Path(name).name != name for name in names):
            raise ValueError(f"a file of it is named {names}, not in this folder")
    except (msgspec.ValidationError, KeyError, ValueError) as error:
        raise ValueError(f"{folder / STATE} cannot be used ({error}): save the data set again") from None
    return [folder / name for name in names]


def _held(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except msgspec.DecodeError:  # a file of somebody else's with that name
        return {}
