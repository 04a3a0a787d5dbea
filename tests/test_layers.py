"""Packages import downward only: the order of the tree is the order of the architecture."""

import ast
import io
import token
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent / "apr"
LAYERS = [
    {"core"}, {"language"}, {"tasks"}, {"engine"}, {"rollouts"}, {"training"},
    {"evaluation"}, {"results"}, {"pipeline"}, {"cli"},
]
RANK = {package: rank for rank, layer in enumerate(LAYERS) for package in layer}
FILES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT)


def imported_modules(path: Path) -> set[str]:
    """Every module that a file imports, wherever in the file it does so."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def test_every_package_has_its_place():
    assert {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()} == set(RANK)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_downward(path: Path):
    own = path.relative_to(ROOT).parts[0]
    modules = imported_modules(path)
    for package in {module.split(".")[1] for module in modules if module.startswith("apr.")} - {own}:
        assert RANK[package] < RANK[own], f"{own} must not import {package}"
    if own == "engine":
        above = ("apr.language", "apr.tasks")
        assert not [module for module in modules if module.startswith(above)], "it knows token ids only"
    if own == "rollouts":
        assert not [module for module in modules if module.split(".")[0] == "torch"], "it knows no tensors"


def code_lines(path: Path) -> int:
    """Lines that hold code: no blanks, no comments, no docstrings."""
    text = path.read_text()
    skipped = {token.COMMENT, token.NL, token.NEWLINE, token.INDENT, token.DEDENT, token.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {line for t in tokens if t.type not in skipped for line in range(t.start[0], t.end[0] + 1)}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


def test_the_package_stays_small():
    counted = {path: code_lines(path) for path in ROOT.rglob("*.py")}
    assert sum(counted.values()) < 9880
    for kind in ("rl", "sft"):
        assert counted[ROOT / "training" / kind / "trainer.py"] < 80
