"""Rules of the house that a reader relies on: imports point one way, and the shared parts know no method by name."""

import ast
import shutil
from pathlib import Path

import pytest

import slimvit_jax as slim

PACKAGE = Path(slim.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(PACKAGE.rglob("*.py"))

#: From the bottom up. A module may import those of lower layers and of its own; a layer is a file or a folder.
LAYERS = (
    ("errors", "text", "quiet", "arrays", "files", "huge_pages", "options", "keywords", "fresh", "facts"),
    ("ops", "images"),
    ("plan", "named", "checked"),
    ("tokens", "losses"),
    ("grid", "slow_fast"),
    ("slimming", "layers", "layers_conv", "layers_pool", "block"),
    ("methods", "encoder"),
    ("backbones",),
    ("models",),
    ("build",),
    ("convert", "data"),
    ("fuse", "inference"),
    ("budget",),
    ("training",),
    ("runs", "reports"),
    ("pretrained",),
    ("serve",),
    ("cli",),
    ("__main__", "__init__"),
)
HEIGHT = {name: height for height, names in enumerate(LAYERS) for name in names}


def modules(package: Path) -> dict[str, Path]:
    """Every module below `package` by its dotted name: "ops.select", "convert" for a folder's __init__."""
    found = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The package's modules that a file imports, wherever in it: in functions and under TYPE_CHECKING too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] != PACKAGE.name:
                continue
            inner = [".".join(parts[1:k]) for k in range(len(parts), 1, -1)]
            found.add(next((module for module in inner if module in known), "__init__"))
    return found


def faults(package: Path) -> list[str]:
    """Imports that point upwards, and circles of modules, one line each."""
    known = modules(package)
    homeless = {name.split(".")[0] for name in known} - HEIGHT.keys()
    assert not homeless, f"give these a place in LAYERS: {', '.join(sorted(homeless))}"
    graph = {name: imports(path, known) - {name} for name, path in known.items()}
    lines = []
    for name, targets in graph.items():
        for target in sorted(targets):
            # a program's own face: what a function needs of the public names is there when it is called
            if target == "__init__" and HEIGHT[name.split(".")[0]] >= HEIGHT["cli"]:
                continue
            if HEIGHT[target.split(".")[0]] > HEIGHT[name.split(".")[0]]:
                lines.append(f"{name} imports {target}, which is above it")
    state: dict[str, int] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        state[name] = 1
        for target in sorted(graph[name]):
            # the face imports what it shows; its own programs may import it
            if target == "__init__":
                continue
            if state.get(target) == 1:
                lines.append("circle: " + " -> ".join([*path[path.index(target) :], target]))
            elif target not in state:
                visit(target, (*path, target))
        state[name] = 2

    for name in graph:
        if name not in state:
            visit(name, (name,))
    return lines


def test_imports_point_one_way_and_make_no_circle():
    assert faults(PACKAGE) == []


@pytest.mark.parametrize(
    "file, line, words",
    [
        ("ops/select.py", "from slimvit_jax.cli import common", "ops.select imports cli.common"),
        ("inference/timing.py", "from slimvit_jax.inference.evaluate import evaluate", "circle: "),
        ("data/sources.py", "import slimvit_jax.training.step", "data.sources imports training.step"),
    ],
)
def test_an_import_in_a_function_is_seen(file, line, words, tmp_path):
    copy = tmp_path / PACKAGE.name
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / file).write_text((copy / file).read_text() + f"\n\ndef late():\n    {line}\n")
    assert any(words in fault for fault in faults(copy))


def test_methods_and_backbones_do_not_know_each_other():
    known = modules(PACKAGE)
    for name, path in known.items():
        top = name.split(".")[0]
        other = {"methods": "backbones", "backbones": "methods"}.get(top)
        assert not any(target.split(".")[0] == other for target in imports(path, known)), name


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


def private_names(*folders: Path) -> set[str]:
    """What the files below the folders define or set under a name with one leading underscore."""
    names = set()
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.FunctionDef(name=name) | ast.ClassDef(name=name) | ast.Name(id=name, ctx=ast.Store()):
                    names.add(name)
                case ast.Attribute(attr=name, ctx=ast.Store()):
                    names.add(name)
    return {name for name in names if name[0] == "_" != name[1:2]}


def uses(path: Path) -> set[str]:
    """Names that a test takes from elsewhere: imported, behind a dot that is not self's, or patched."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Attribute(value=owner, attr=name) if not (isinstance(owner, ast.Name) and owner.id == "self"):
                found.add(name)
            case ast.alias(name=name) | ast.Call(func=ast.Attribute(attr="setattr"), args=[_, ast.Constant(name), *_]):
                found.add(name)
    return found


def test_tests_go_through_the_public_surface():
    ours = private_names(PACKAGE, ROOT / "benchmarks")
    assert "_attempt" in ours and "__init__" not in ours
    found = {path.name: names for path in (ROOT / "tests").rglob("*.py") if (names := uses(path) & ours)}
    assert found == {}
