"""The notebook docs/tutorial.ipynb: its cells run from top to bottom, and its stored outputs are of that order."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbformat import NotebookNode

FILE = Path(__file__).parents[1] / "docs" / "tutorial.ipynb"
MAX_BYTES = 100_000


def read() -> tuple[NotebookNode, list[NotebookNode]]:
    notebook = nbformat.read(FILE, as_version=4)
    return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]


def texts(cells: list[NotebookNode]) -> list[str]:
    """What each cell shows, as text."""
    return [
        "".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)
        for cell in cells
    ]


def test_the_stored_outputs():
    """Of one run in order, without errors and without anything of the machine that it ran on."""
    _, cells = read()
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert {output.output_type for cell in cells for output in cell.outputs} <= {
        *("stream", "execute_result", "display_data")
    }
    assert not [output for cell in cells for output in cell.outputs if output.get("name") == "stderr"]
    text = FILE.read_text(encoding="utf-8")
    assert len(text) < MAX_BYTES
    assert not re.findall(r"\w+Path\('|(?<![\w.])/(?:home|root|tmp|usr|Users)/|[A-Z]:\\\\|\\u001b|Warning", text)


@pytest.mark.slow
def test_it_runs(elsewhere):
    notebook, cells = read()
    stored = texts(cells)
    for cell in cells:
        cell.outputs = []
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": elsewhere}}).execute()
    shown = texts(cells)
    assert [bool(text) for text in shown] == [bool(text) for text in stored]
    assert not [output for cell in cells for output in cell.outputs if output.get("name") == "stderr"]
    assert "best so far" in shown[4] and "\x1b" not in "".join(shown)
    assert "with Lion" in shown[-1]
    assert (elsewhere / "outputs" / "adder" / "checkpoints" / "best" / "model.safetensors").is_file()
