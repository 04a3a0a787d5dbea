"""Which code makes which jobs stale: what Python really imports for them, and nothing else."""

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, ClassVar

import pytest

from apr.core.errors import DataError
from apr.core.hashes import SETTLED, Memory
from apr.pipeline.code import Code
from apr.pipeline.plan import load_scale
from apr.pipeline.stages import STAGES

ROOT = Path(__file__).parents[2]
PARAMS = load_scale("default", ROOT)
IMPORTED = """
import ast, functools, importlib, json, os, sys


def everything(module):
    found, waiting = set(), [module]
    while waiting:
        try:
            importlib.import_module(waiting.pop())
        except ModuleNotFoundError:  # a name of a module, not a module
            continue
        for name in {name for name in sys.modules if name.split(".")[0] == "apr"} - found:
            found.add(name)
            waiting += in_functions(sys.modules[name].__file__)
    return sorted(sys.modules[name].__file__ for name in found)


@functools.cache
def in_functions(file):
    return [name for function in ast.walk(ast.parse(open(file).read()))
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
            for node in ast.walk(function) for name in names(node)]


def names(node):
    found = []
    if isinstance(node, ast.Import):
        found = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        found = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in found if name.split(".")[0] == "apr"]


for module in sys.argv[1:]:
    everything(module)
for name in [name for name in sys.modules if name.split(".")[0] == "apr"]:
    del sys.modules[name]  # what others have written stays, which takes seconds to import
for module in sys.argv[1:]:
    if not os.fork():
        print(json.dumps(everything(module)), flush=True)
        os._exit(0)
    os.wait()
"""
"""What is imported when a module is, and what its functions import when they are called."""


def tree(path: Path) -> Path:
    """A copy of the package."""
    shutil.copytree(ROOT / "apr", path / "apr", ignore=shutil.ignore_patterns("__pycache__"))
    return path


class Remembering(Code):
    """Parses a text once, as the same hundred files are looked at again and again."""

    known: ClassVar[dict[tuple[Path, bytes], Any]] = {}

    def _look_at(self, path: Path) -> Any:
        key = path, path.read_bytes()
        if key not in self.known:
            self.known[key] = super()._look_at(path)
        return self.known[key]


def stages(repository: Path) -> dict[str, dict[str, str]]:
    code = Remembering(repository)
    return {name: code.of(*stage.modules(PARAMS)) for name, stage in STAGES.items()}


@pytest.fixture(scope="module")
def imported() -> dict[str, set[str]]:
    """The files that Python imports for each stage."""
    modules = sorted({module for stage in STAGES.values() for module in stage.modules(PARAMS)})
    done = subprocess.run([sys.executable, "-c", IMPORTED, *modules], cwd=ROOT, check=True, text=True,
                          capture_output=True, env=os.environ | {"PYTHONPATH": str(ROOT)})  # fmt: skip
    found = {module: {str(Path(path).relative_to(ROOT)) for path in json.loads(line)}
             for module, line in zip(modules, done.stdout.splitlines(), strict=True)}  # fmt: skip
    return {name: set().union(*(found[module] for module in stage.modules(PARAMS)))
            for name, stage in STAGES.items()}  # fmt: skip


def test_an_edit_of_any_module_makes_stale_what_imports_it(imported, tmp_path):
    before = stages(tree(tmp_path))
    for path in sorted((tmp_path / "apr").rglob("*.py")):
        text, name = path.read_text(), str(path.relative_to(tmp_path))
        path.write_text(text + "\nchanged = True\n")
        after = stages(tmp_path)
        stale = {stage for stage in STAGES if after[stage] != before[stage]}
        assert stale == {stage for stage, files in imported.items() if name in files}, name
        path.write_text(text)


def test_an_edit_of_a_file_that_a_module_loads_is_seen(tmp_path):
    before = stages(tree(tmp_path))
    loaded = [path for path in (tmp_path / "apr").rglob("*") if path.suffix in (".c", ".h", ".html", ".j2")]
    assert {".c", ".h", ".html"} <= {path.suffix for path in loaded}
    for path in loaded:
        content = path.read_bytes()
        path.write_bytes(content + b"changed")
        stale = {stage for stage, files in stages(tmp_path).items() if files != before[stage]}
        package = str(path.parent.relative_to(tmp_path))
        assert stale == {stage for stage, files in before.items()
                         if any(file.startswith(f"{package}/") for file in files)}  # fmt: skip
        path.write_bytes(content)
    template = tmp_path / "apr/results/report/templates/new.css"
    template.parent.mkdir(exist_ok=True)
    template.write_text("p {}")
    assert {stage for stage, files in stages(tmp_path).items() if files != before[stage]} == {"report"}


def commented(text: str) -> str:
    """The same program in other words: no docstrings, other comments, other formatting."""
    return "# another comment\n" + ast.unparse(ast.parse(text)).replace("\n\n", "\n\n\n") + "\n# the end\n"


@pytest.mark.parametrize(
    "change",
    [
        commented,
        lambda text: text.replace('"""', '"""Changed. ', 1),
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text,
    ],
)
def test_words_and_formatting_change_nothing(tmp_path, change):
    before = stages(tree(tmp_path))
    for path in (tmp_path / "apr").rglob("*.py"):
        path.write_bytes(change(path.read_text()).encode())
    assert stages(tmp_path) == before


def test_ends_of_lines_and_litter_change_nothing(tmp_path):
    before = stages(tree(tmp_path))
    for path in [*(tmp_path / "apr").rglob("*.c"), *(tmp_path / "apr").rglob("*.html")]:
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
        for name in (".DS_Store", f".{path.name}.swp", f"{path.name}~", "library.so"):
            path.with_name(name).write_bytes(b"litter")
    assert stages(tmp_path) == before


@pytest.mark.parametrize(
    "before, after",
    [
        ("x = 1", "x = 1.0"),
        ("x = 1", "x = True"),
        ("x = 'a'", "x = b'a'"),
        ("f(a, b)", "f(b, a)"),
        ("def f(x=1): ...", "def f(x): ..."),
        ("def f():\n    return 'text'", "def f():\n    'text'"),
        ("if a:\n    b\nelse:\n    c", "if a:\n    c\nelse:\n    b"),
        ("x = a + b", "x = a - b"),
        ("x: int = 1", "x: float = 1"),
    ],
)
def test_other_programs_are_told_apart(tmp_path, before, after):
    found = []
    for text in (before, after):
        (tmp_path / "apr").mkdir(exist_ok=True)
        (tmp_path / "apr/module.py").write_text(text)
        found.append(Code(tmp_path).of("apr.module"))
    assert found[0] != found[1]


def test_imports_of_every_form_are_followed(tmp_path):
    files = {
        "apr/__init__.py": "", "apr/a/__init__.py": "from . import b", "apr/a/b.py": "from .. import c",
        "apr/c.py": "def f():\n try:\n  from apr.d import name\n except ImportError:\n  import apr.e",
        "apr/d/__init__.py": "", "apr/d/name.py": "", "apr/e.py": "import apr.a", "apr/f.py": "",
        "apr/g.py": "import typing\nif typing.TYPE_CHECKING:\n    import apr.f\nelse:\n    import apr.a.b",
    }  # fmt: skip
    for path, text in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert set(Code(tmp_path).of("apr.g")) == files.keys() - {"apr/f.py"}


def test_what_is_remembered_is_what_is_there(tmp_path, monkeypatch):
    repository, read = tree(tmp_path), list[Path]()
    look = Code._look_at
    monkeypatch.setattr(Code, "_look_at", lambda self, path: read.append(path) or look(self, path))

    def found(memory: Memory | None) -> dict[str, str]:
        read.clear()
        return Code(repository, memory).of("apr.pipeline.run")

    def remembered() -> dict[str, str]:
        memory = Memory(tmp_path / "memory.json")
        code = found(memory)
        memory.save()
        return code

    time.sleep(SETTLED / 1e9 + 0.1)
    before = remembered()
    assert remembered() == before and not read
    assert found(None) == before and set(read) == {repository / name for name in before}
    edited = repository / "apr/core/files.py"
    edited.write_text(edited.read_text() + "changed = True\n")
    after = remembered()
    assert read == [edited]
    assert after == found(None) != before


def test_a_module_that_is_no_python_is_an_error(tmp_path):
    (tmp_path / "apr").mkdir()
    (tmp_path / "apr/module.py").write_text("x = (")
    with pytest.raises(DataError, match="module.py: not valid Python"):
        Code(tmp_path).of("apr.module")
