"""Hashes of files and of JSON values, and a memory of them that the file system vouches for."""

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from apr.core.errors import DataError
from apr.core.files import read_json, write_json

DIRECTORY_SEAL = "recipe.json"
SETTLED = 2 * 10**9
"""Nanoseconds: the coarsest time stamps of file systems. A file that changed as lately may change unseen."""


def digest(value: Any) -> str:
    """Returns the SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes, or "absent"."""
    if not path.is_file():
        return "absent"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tree(root: Path, base: Path, of: Callable[[Path], str] = hash_file) -> dict[str, str]:
    """Returns the hash of each file at or below `root`, by its path from `base`; seals and bytecode are left
    out."""
    files = sorted(path for path in root.rglob("*") if path.is_file()) if root.is_dir() else [root]
    return {
        Path(os.path.relpath(path, base)).as_posix(): of(path)
        for path in files
        if "__pycache__" not in path.parts and path.name != DIRECTORY_SEAL
    }


class Memory:
    """What files were found to hold, their hashes for one, kept in the JSON file `path`; deleting that loses
    time alone.

    It holds as long as size, inode and both time stamps of a file do; no program can set the second.
    """

    def __init__(self, path: Path):
        self._path, self._used = path, dict[str, Any]()
        try:
            self._known = dict(read_json(path))
        except (DataError, TypeError, ValueError):
            self._known = {}

    def hash_file(self, path: Path) -> str:
        """Returns the SHA-256 of a file's bytes, or "absent"."""
        return self.found(path, hash_file) if path.is_file() else "absent"

    def found(self, path: Path, look: Callable[[Path], Any], version: str = "") -> Any:
        """Returns what `look`, of a `version`, finds in a file: a JSON value."""
        now, stat = time.time_ns(), path.stat()
        mark = [version, stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]
        *before, known = self._known.get(str(path), [None])
        value = known if before == mark else look(path)
        if now - max(stat.st_mtime_ns, stat.st_ctime_ns) > SETTLED:
            self._used[str(path)] = [*mark, value]
        return value

    def save(self) -> None:
        """Writes what was asked for, if anything is new and the disk lets it."""
        if self._used != self._known:
            with suppress(OSError):
                write_json(self._path, self._used)
