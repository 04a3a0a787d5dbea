"""Compiles `kernels.c` for this machine, once, and calls it.

The library is kept under `$XDG_CACHE_HOME/apr` (`~/.cache/apr`), named after the source, the compiler's
options and the processor. Without a C compiler there are no kernels; what uses them has another way.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import warnings
from functools import cache
from pathlib import Path

from apr.core.files import atomic_path

SOURCE = Path(__file__).with_name("kernels.c")
OPTIONS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-fPIC", "-shared")
INT, FLOAT, ARRAY = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
FUNCTIONS = {
    "apr_attend": (INT,) * 5 + (FLOAT, INT) + (ARRAY,) * 8,
    "apr_rms_norm": (INT, INT, FLOAT, ARRAY, ARRAY, ARRAY),
    "apr_silu_multiply": (INT, INT, ARRAY, ARRAY),
}


@cache
def load_kernels() -> ctypes.CDLL | None:
    """The functions of `kernels.c`; None, with a warning, where they cannot be compiled or loaded."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        warnings.warn("no C compiler (cc, gcc): decoding on the CPU will be slow", stacklevel=2)
        return None
    try:
        library = ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        warnings.warn(f"{SOURCE.name} does not compile here, decoding will be slow: {said}", stacklevel=2)
        return None
    for name, arguments in FUNCTIONS.items():
        function = getattr(library, name)
        function.argtypes, function.restype = arguments, None
    return library


def _compiled(compiler: str) -> Path:
    identity = [SOURCE.read_text(), compiler, *OPTIONS, platform.machine(), _processor()]
    digest = hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "apr"
    library = folder / f"kernels-{digest}.so"
    if not library.exists():
        with atomic_path(library) as partial:
            command = [compiler, *OPTIONS, str(SOURCE), "-o", str(partial), "-lm"]
            subprocess.run(command, check=True, capture_output=True, text=True)
    return library


def _processor() -> str:
    """What `-march=native` depends on."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else [platform.processor()]
    kept = {line for line in lines if line.startswith(("flags", "Features", "model name"))}
    return "\n".join(sorted(kept or lines))
