"""C sources that are compiled for this machine when they are first needed.

A library is kept under `$XDG_CACHE_HOME/apr` (`~/.cache/apr`), named after the source, the headers
that it includes in quotes, the compiler's options and the processor.
"""

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from apr.core.errors import AprError
from apr.core.files import atomic_path

OPTIONS = ("-O3", "-march=native", "-fPIC", "-shared")


class CompilerError(AprError):
    """Something has to be compiled on this machine, and cannot be."""


def load_library(
    source: Path, functions: Mapping[str, Sequence[type]], options: Sequence[str] = (),
    results: Mapping[str, type] = {},
) -> ctypes.CDLL:  # fmt: skip
    """Returns the `functions` of a C file, by their argument types; those not in `results` return nothing.

    Raises `CompilerError` where they cannot be compiled or loaded.
    """
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        raise CompilerError(f"{source.name}: no C compiler here; install gcc, or name another in $CC")
    try:
        library = ctypes.CDLL(str(_compiled(compiler, source, [*OPTIONS, *options])))
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise CompilerError(f"{source.name}: does not compile here ({said.strip()})") from None
    for name, arguments in functions.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, results.get(name)
    return library


def _compiled(compiler: str, source: Path, options: Sequence[str]) -> Path:
    identity = [*_texts(source), compiler, *options, platform.machine(), _processor()]
    digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "apr"
    library = folder / f"{source.stem}-{digest}.so"
    if not library.exists():
        with atomic_path(library) as partial:
            command = [compiler, *options, str(source), "-o", str(partial), "-lm"]
            subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def _texts(source: Path) -> list[str]:
    """Returns the text of a C file, then those of what it includes in quotes, in turn."""
    text = source.read_text()
    included = re.findall(r'^#include "(.+)"', text, re.MULTILINE)
    return [text, *(part for name in included for part in _texts(source.parent / name))]


def _processor() -> str:
    """What `-march=native` depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    kept = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    return "\n".join(sorted(kept or lines))
