"""Who may import whom, and how large a file may be."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "jepa_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
# A folder imports itself and lower levels only. Files directly in the package, and the
# program under `bench`, are entry points: level 6. They may draw, which is `viz`.
LEVELS = {
    "models": 1, "data": 1, "training": 1, "commandline": 0, "weights": 2, "robots": 2, "features": 3, "tasks": 3, "planning": 3, "sim": 3, "evals": 4, "curation": 4,
    "viz": 5, "prepare": 5, "bench": 6,
}
ENTRY_LEVEL = 6
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "tools"}
MAX_LINES = 400


def _imports(path):
    """Yield the dotted names a file imports, wherever in the file it does."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _folder(path):
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else None


def _matches(name, module):
    return name == module or name.startswith(module + ".")


def _users(module):
    return {path.relative_to(PACKAGE).as_posix() for path in FILES if any(_matches(n, module) for n in _imports(path))}


def test_folders_are_known():
    folders = {_folder(path) for path in FILES} - {None}
    assert folders <= set(LEVELS), f"give {folders - set(LEVELS)} a level"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_down(path):
    folder = _folder(path)
    level = LEVELS.get(folder, ENTRY_LEVEL)
    if path.parent == PACKAGE and path.name == "__init__.py":
        level = 0
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] == "configs":
            assert level == ENTRY_LEVEL, f"{path} imports a config"
        if parts[0] != "jepa_jax" or len(parts) == 1:
            continue
        other = parts[1] if (PACKAGE / parts[1]).is_dir() else None
        if other != folder:
            below = LEVELS.get(other, ENTRY_LEVEL) < level or (other is None and level == ENTRY_LEVEL)
            assert below, f"{path.relative_to(ROOT)} (level {level}) imports {name}"


@pytest.mark.parametrize("module", ["jax", "jaxlib", "flax", "optax", "orbax"])
def test_data_is_numpy_only(module):
    assert not [user for user in _users(module) if user.startswith("data/")]


def test_flax_is_used_thinly():
    linen = {user for user in _users("flax.linen") if not user.startswith("models/")}
    assert linen <= {"training/sharding.py"}
    assert _users("flax.struct") <= {"training/state.py"}
    others = {name for path in FILES for name in _imports(path) if _matches(name, "flax")}
    allowed = ("flax.linen", "flax.struct")
    assert all(name == "flax" or name.startswith(allowed) for name in others), others
    assert not _users("flax.nnx") and not _users("flax.training")


def test_configs_are_data():
    for path in sorted((ROOT / "configs").glob("*.py")):
        for name in _imports(path):
            assert name.split(".")[0] in {"ml_collections", "configs"}, f"{path.name} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_size_and_names(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= MAX_LINES, f"{path} has {len(lines)} lines"
    assert not FORBIDDEN_NAMES & {part.removesuffix(".py") for part in path.relative_to(PACKAGE).parts}
    assert ast.get_docstring(ast.parse("\n".join(lines))), f"{path} has no docstring"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_house_rules(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"{path}:{node.lineno} prints"
        if isinstance(node, ast.ExceptHandler):
            caught = getattr(node.type, "id", None)
            assert node.type is not None and caught not in {"Exception", "BaseException"}, f"{path}:{node.lineno}"
        if isinstance(node, ast.Assert):
            raise AssertionError(f"{path}:{node.lineno} asserts; raise an error that says what and what is allowed")
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= 65, f"{path}:{node.lineno} {node.name} has {length} lines"
