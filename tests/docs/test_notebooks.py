"""The notebooks: committed as they ran, and their code runs."""

import json
from pathlib import Path

import matplotlib
import pytest

FOLDER = Path(__file__).parents[2] / "notebooks"
#: Lines to shorten, as only the course is of interest here, and what is printed whatever the numbers.
NOTEBOOKS = {
    "tour": ({"EPOCHS": '{"dense": 1, "slimmed": 1}', "RATES": "(0.5,)"}, "equal: True"),
    "slim_pretrained": ({"EPOCHS": "1.0", "RATES": "(0.5,)"}, "equal: True"),
    "write_a_method": ({"EPOCHS": "1"}, "patches [9. 0.] from [3 0]"),
}


@pytest.fixture(params=NOTEBOOKS)
def name(request):
    return request.param


@pytest.fixture
def cells(name):
    """The code cells of one notebook."""
    found = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    return [cell for cell in found if cell["cell_type"] == "code"]


def test_no_notebook_is_left_out():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(NOTEBOOKS)


def test_it_ran_from_top_to_bottom(cells):
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert {output["output_type"] for output in outputs} <= {"stream", "display_data", "execute_result"}  # no error
    assert not [output["text"] for output in outputs if output.get("name") == "stderr"]
    assert any("image/png" in output.get("data", {}) for output in outputs)


def test_its_code_runs(name, cells, capsys):
    matplotlib.use("Agg")
    code = "\n\n".join("".join(cell["source"]) for cell in cells)
    shortened, said = dict(NOTEBOOKS[name][0]), NOTEBOOKS[name][1]
    lines = []
    for line in code.splitlines():
        left = line.partition(" = ")[0]
        lines.append("" if line.startswith("%") else f"{left} = {shortened.pop(left)}" if left in shortened else line)
    assert not shortened
    exec(compile("\n".join(lines), "notebook", "exec"), {"__name__": "notebook"})
    assert said in capsys.readouterr().out
