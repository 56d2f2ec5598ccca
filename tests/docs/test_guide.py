"""The guide notebook runs from beginning to end, and what is stored in it is from such a run."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

DOCS = Path(__file__).parents[2] / "docs"
GUIDE = DOCS / "guide.ipynb"


def _executor():
    spec = importlib.util.spec_from_file_location("execute_guide", DOCS / "execute_guide.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_cell_runs(tmp_path: Path, monkeypatch):
    """Whatever a cell prints: a cell that fails raises CellExecutionError with its traceback."""
    pytest.importorskip("transformers")
    pytest.importorskip("lm_eval")
    import fledge

    monkeypatch.setenv("PYTHONPATH", str(Path(fledge.__file__).parents[1]))
    done = _executor().execute(GUIDE, tmp_path)
    cells = [cell for cell in done.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert (tmp_path / "runs" / "dpo" / "done.json").exists() and (tmp_path / "exported" / "config.json").exists()
    said = "".join(output.text for cell in cells for output in cell.outputs if output.output_type == "stream")
    right = {name: int(share) for name, share in re.findall(r"^(SFT[\w ]*): (\d+)% right", said, re.MULTILINE)}
    assert right["SFT"] >= 20 > 5 >= right["SFT from random weights"], said
    theirs, ours = (re.search(rf"^{name}: +(.+)$", said, re.MULTILINE)[1] for name in ("transformers", "fledge"))
    assert theirs == ours


def test_stored_outputs_are_whole_and_tell_nothing_of_the_machine():
    stored = json.loads(GUIDE.read_text("utf-8"))
    code = [cell for cell in stored["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert {"image/svg+xml", "text/html", "text/plain"} <= kinds
    written = GUIDE.read_text("utf-8")
    assert not re.findall(r"(?<![\w<.])/(?:tmp|root|home|usr|opt|Users)/\S*|site-packages|0x[0-9a-f]{8,}", written)
    assert len(written) < 200_000
