"""The notebooks: committed as they ran, and their code runs."""

import json
from pathlib import Path

import matplotlib
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def cells(request):
    """The code cells of one notebook."""
    found = json.loads(request.param.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


def test_there_are_notebooks():
    assert NOTEBOOKS  # or the tests below would be skipped


def test_it_ran_from_top_to_bottom(cells):
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}  # no error
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_its_code_runs(cells, capsys):
    """With an epoch for each training and one keep rate, as only its course is of interest here."""
    matplotlib.use("Agg")
    code = "\n\n".join("".join(cell["source"]) for cell in cells)
    shortened = {"EPOCHS": '{"dense": 1, "slimmed": 1}', "RATES": "(0.5,)"}
    lines = []
    for line in code.splitlines():
        name = line.partition(" = ")[0]
        lines.append("" if line.startswith("%") else f"{name} = {shortened.pop(name)}" if name in shortened else line)
    assert not shortened
    exec(compile("\n".join(lines), "notebook", "exec"), {"__name__": "notebook"})
    assert "equal: True" in capsys.readouterr().out
