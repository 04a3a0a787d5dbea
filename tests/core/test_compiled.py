"""C is compiled again when a text that it is made of has changed, and not before."""

import ctypes

import pytest

from apr.core.compiled import CompilerError, load_library


def test_an_edit_of_a_header_compiles_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source, header, deeper = tmp_path / "source.c", tmp_path / "own/outer.h", tmp_path / "own/inner.h"
    header.parent.mkdir()
    source.write_text('#include "own/outer.h"\nlong number(void) { return NUMBER; }\n')
    header.write_text('#include "inner.h"\n')

    def number() -> int:
        return load_library(source, {"number": ()}, results={"number": ctypes.c_long}).number()

    for text, expected, libraries in [("1", 1, 1), ("2", 2, 2), ("1", 1, 2)]:
        deeper.write_text(f"#define NUMBER {text}\n")
        assert number() == expected
        assert len(list((tmp_path / "cache/apr").iterdir())) == libraries


def test_what_does_not_compile_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "source.c"
    for text in ("this is not C", '#include "absent.h"\n'):
        source.write_text(text)
        with pytest.raises(CompilerError, match=r"source.c: does not compile here"):
            load_library(source, {})
