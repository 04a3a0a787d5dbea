"""The functions of `kernels.c`. Without a C compiler there are none; what uses them has another way."""

import ctypes
import warnings
from functools import cache
from pathlib import Path

from apr.core.compiled import CompilerError, load_library

SOURCE = Path(__file__).with_name("kernels.c")
OPTIONS = ("-fno-math-errno", "-fno-trapping-math", "-fopenmp")
INT, FLOAT, ARRAY = ctypes.c_int64, ctypes.c_float, ctypes.c_void_p
FUNCTIONS = {
    "apr_attend": (INT,) * 5 + (FLOAT, INT) + (ARRAY,) * 8,
    "apr_rms_norm": (INT, INT, FLOAT, ARRAY, ARRAY, ARRAY),
    "apr_silu_multiply": (INT, INT, ARRAY, ARRAY),
}


@cache
def load_kernels() -> ctypes.CDLL | None:
    """The library; None, with a warning, where it cannot be compiled or loaded."""
    try:
        return load_library(SOURCE, FUNCTIONS, OPTIONS)
    except CompilerError as error:
        warnings.warn(f"decoding on the CPU will be slow: {error}", stacklevel=2)
        return None
