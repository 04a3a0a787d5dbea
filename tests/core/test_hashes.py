"""Hashes are remembered as long as the file system vouches for them, and no longer."""

import os
import time
from pathlib import Path

import pytest

from apr.core import hashes
from apr.core.hashes import SETTLED, Memory, hash_file


@pytest.fixture
def hashed(monkeypatch):
    """The files that are really read."""
    read = []
    monkeypatch.setattr(hashes, "hash_file", lambda path: read.append(path) or hash_file(path))
    return read


def settle() -> None:
    time.sleep(SETTLED / 1e9 + 0.1)


def look(memory: Path, *paths: Path) -> list[str]:
    found = Memory(memory)
    values = [found.hash_file(path) for path in paths]
    found.save()
    return values


def test_bytes_are_read_again_only_where_size_or_time_moved(tmp_path, hashed):
    memory, a, b = tmp_path / "memory.json", tmp_path / "a", tmp_path / "b"
    a.write_text("1")
    b.write_text("2")
    settle()
    first = look(memory, a, b)
    assert look(memory, a, b) == first == [hash_file(a), hash_file(b)] and hashed == [a, b]
    b.write_text("3")
    assert look(memory, a, b) == [first[0], hash_file(b)] and hashed == [a, b, b]
    assert look(memory, tmp_path / "absent") == ["absent"]
    memory.unlink()
    assert look(memory, a) == first[:1] and hashed == [a, b, b, a], "it is nothing but a memory"
    memory.write_text("[broken")
    assert look(memory, a) == first[:1]


def test_a_change_that_hides_its_size_and_its_time_is_seen(tmp_path):
    memory, path = tmp_path / "memory.json", tmp_path / "weights"
    path.write_text("1")
    settle()
    (before,) = look(memory, path)
    stat = path.stat()
    path.write_text("2")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_mtime_ns == stat.st_mtime_ns
    assert look(memory, path) != [before]


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path, hashed):
    """On a file system with coarse time stamps it may change again and look the same."""
    memory, path = tmp_path / "memory.json", tmp_path / "weights"
    path.write_text("1")
    assert look(memory, path) == look(memory, path) and hashed == [path, path]


def test_what_another_version_found_is_looked_for_again(tmp_path):
    path, looked = tmp_path / "text", []

    def find(memory: Memory, version: str) -> list[str]:
        return memory.found(path, lambda path: looked.append(version) or path.read_text().split(), version)

    path.write_text("a b")
    settle()
    for version in ("1", "1", "2"):
        memory = Memory(tmp_path / "memory.json")
        assert find(memory, version) == ["a", "b"]
        memory.save()
    assert looked == ["1", "2"]
