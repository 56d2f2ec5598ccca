"""Runs docs/guide.ipynb from beginning to end in an empty folder: `python docs/execute_guide.py` stores its outputs."""

import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

GUIDE = Path(__file__).with_name("guide.ipynb")
_LIMIT_SECONDS = 600  # for a cell, on a machine that does much else


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run in `folder`. Raises CellExecutionError where a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=_LIMIT_SECONDS, resources={"metadata": {"path": str(folder)}}).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of day
        if cell.cell_type == "code":
            cell.outputs = _joined(
                [o for o in cell.outputs if o.get("name") != "stderr"]
            )  # warnings of other libraries
    notebook.metadata.language_info = {"name": "python"}
    return notebook


def _joined(outputs: list) -> list:
    """Neighbouring pieces of one stream as one; displays that only served to be updated keep no handle."""
    joined: list = []
    for output in outputs:
        output.get("transient", {}).pop("display_id", None)
        if joined and output.output_type == "stream" == joined[-1].output_type and output.name == joined[-1].name:
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as empty:
        began = time.monotonic()
        executed = execute(GUIDE, Path(empty))
    nbformat.write(executed, GUIDE)
    print(f"{GUIDE} executed in {time.monotonic() - began:.0f} s", file=sys.stderr)
