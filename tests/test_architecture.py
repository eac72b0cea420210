"""Rules of the house that a reader relies on: imports point one way, and the shared parts know no method by name."""

import ast
from pathlib import Path

import pytest

import slimvit_jax as slim

PACKAGE = Path(slim.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

#: Lower layers must not import higher ones; a module's layer is that of its longest matching prefix.
LAYERS = {
    "errors": 0,
    "text": 0,
    "arrays": 0,
    "facts": 0,
    "files": 0,
    "huge_pages": 0,
    "fresh": 0,
    "options": 1,
    "keywords": 1,
    "plan": 1,
    "ops": 1,
    "images": 1,
    "losses": 2,
    "models": 1,
    "models_encoders": 1,
    "tokens": 2,
    "checked": 3,
    "grid": 3,
    "slimming": 3,
    "layers": 3,
    "block": 3,
    "layers_conv": 3,
    "layers_pool": 3,
    "fuse": 7,
    "methods": 4,
    "encoder": 4,
    "backbones": 5,
    "build": 6,
    "convert": 7,
    "data": 7,
    "analysis": 8,
    "training": 8,
    "runs": 9,
    "reports": 9,
    "cli": 10,
    "__main__": 10,
    "__init__": 10,
}


def imports(path: Path) -> list[str]:
    """Names of this package's modules that a file imports at its top level."""
    found = []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("slimvit_jax"):
            rest = node.module.removeprefix("slimvit_jax").removeprefix(".")
            found += [rest] if rest else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            found += [a.name.removeprefix("slimvit_jax.") for a in node.names if a.name.startswith("slimvit_jax.")]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_point_one_way(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    own = LAYERS[parts[0]]
    for name in imports(path):
        assert LAYERS.get(name.split(".")[0], 0) <= own, f"{path.name} imports slimvit_jax.{name}, which is above it"
    if parts[0] in ("methods", "backbones"):
        other = {"methods": "backbones", "backbones": "methods"}[parts[0]]
        assert not any(name.split(".")[0] == other for name in imports(path))


@pytest.mark.parametrize(
    "name",
    ["encoder.py", "layers.py", "tokens.py"]
    + [f"backbones/{p.name}" for p in sorted((PACKAGE / "backbones").glob("*.py"))],
)
def test_shared_parts_know_no_method_by_name(name):
    """Docstrings may; so may `translate`, which puts the keywords of a release into ours."""
    tree = ast.parse((PACKAGE / name).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            node.body = [part for part in node.body if getattr(part, "name", "") != "translate"]
    code, words = ast.dump(tree), {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    for method, cls in slim.methods.METHODS.items():
        assert method not in words and f"'{cls.__name__}'" not in code


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_torch_and_tensorflow_stay_out_of_the_package(path):
    """torch is imported inside functions of convert/ only; TensorFlow nowhere."""
    tree = ast.parse(path.read_text())
    names = {a.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {(n.module or "").split(".")[0] for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    allowed = {"torch"} if "convert" in path.parts else set()
    assert not (names & {"torch", "timm", "tensorflow"}) - allowed
    top = [node for node in tree.body if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert not any("torch" in ast.dump(node) for node in top if "from_torch" not in ast.dump(node))


def test_files_stay_readable():
    lengths = {path.relative_to(PACKAGE).as_posix(): len(path.read_text().splitlines()) for path in FILES}
    assert {name: n for name, n in lengths.items() if n > 330} == {}
