"""The code of a job: the modules of `apr` that its function's module imports, in turn, wherever in a file.

A module is hashed as a syntax tree, so that comments, docstrings and formatting change nothing. Files of
other kinds beside an imported module (C, templates) belong to it, since what reads them cannot be known.
"""

import ast
import hashlib
from collections.abc import Iterator
from functools import cache, partial
from importlib.util import resolve_name
from pathlib import Path
from typing import Any

from apr.core.errors import DataError
from apr.core.hashes import Memory

NO_CODE = (".py", ".pyc", ".so", ".typed")
"""Ends of names of files beside modules that are not read by them."""


class Code:
    """The package `apr` in `repository`, each of whose files is read once, or not at all if `memory` has what
    this module, as it is, has found in it."""

    def __init__(self, repository: Path, memory: Memory | None = None):
        self._root, look = repository, self._look_at
        if memory:
            look = partial(memory.found, look=look, version=memory.hash_file(Path(__file__)))
        self._files, self._look = cache(self._files_of), cache(look)

    def of(self, *modules: str) -> dict[str, str]:
        """Returns the hash of each file that counts for what `modules` do, by its path, sorted."""
        found: dict[Path, str] = {}
        waiting, seen = [*modules], {*modules}
        while waiting:
            for path in self._files(waiting.pop()):
                found[path], imports = self._look(path)
                waiting += set(imports) - seen
                seen.update(imports)
        return {path.relative_to(self._root).as_posix(): found[path] for path in sorted(found)}

    def _files_of(self, module: str) -> list[Path]:
        """Returns the files of a module: its own, those of the packages around it, and others beside them.

        What is no module, such as a name that is imported from one, has only those around it.
        """
        own, around = self._root.joinpath(*module.split(".")), module.rpartition(".")[0]
        files = self._files(around) if around else []
        if (own / "__init__.py").is_file():
            return [*files, own / "__init__.py", *beside(own)]
        return [*files, *([file] if (file := own.with_suffix(".py")).is_file() else [])]

    def _look_at(self, path: Path) -> tuple[str, list[str]]:
        """Returns the hash of what a file means, and modules of `apr` it may import. Raises `DataError`."""
        content = path.read_bytes()
        if path.suffix != ".py":
            return hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest(), []
        try:
            tree = ast.parse(content, str(path))
        except (SyntaxError, ValueError) as error:
            raise DataError(f"{path}: not valid Python ({error})") from None
        package = ".".join(path.relative_to(self._root).parent.parts)
        imports = {name for name in imported(tree, package) if name.split(".")[0] == "apr"}
        return hashlib.sha256(repr(meaning(tree)).encode()).hexdigest(), sorted(imports)


def beside(folder: Path) -> Iterator[Path]:
    """Yields the files of a package that are no modules, those in folders that are no packages included."""
    for path in sorted(folder.iterdir()):
        if path.name.startswith((".", "__pycache__")) or path.name.endswith(("~", *NO_CODE)):
            continue
        if path.is_file():
            yield path
        elif not (path / "__init__.py").is_file():
            yield from beside(path)


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Yields what a syntax tree imports: modules, and names that may be modules; not for type checkers."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = resolve_name("." * node.level + (node.module or ""), package)
            yield from (source, *(f"{source}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            waiting += node.orelse
        elif not isinstance(node, ast.expr):
            waiting += ast.iter_child_nodes(node)


def meaning(value: Any) -> Any:
    """Returns a syntax tree as nested tuples, the same for every version of Python: places, strings that
    stand alone (docstrings) and empty fields are left out."""
    if isinstance(value, ast.AST):
        fields = [(name, meaning(item)) for name, item in ast.iter_fields(value) if name != "kind"]
        return type(value).__name__, *((name, item) for name, item in fields if item not in (None, ()))
    if isinstance(value, list):
        return tuple(meaning(item) for item in value if not is_text(item))
    return None if value is None else repr(value)


def is_text(node: Any) -> bool:
    value = node.value if isinstance(node, ast.Expr) else None
    return isinstance(value, ast.Constant) and isinstance(value.value, str)
