"""What a setting may be: its types, sections of them, and the YAML files and errors in which they come.

Numbers are numbers: neither booleans nor texts nor `.inf` pass for one, nor a fraction for a whole number.
"""

import os
import re
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)
from pydantic_core import PydanticCustomError
from ruamel.yaml import YAML

from apr.core.errors import ParamsError, quoted

T = TypeVar("T")


def only(holds: Callable[[Any], object], allowed: str) -> AfterValidator:
    """Returns what refuses the values of a type for which `holds` does not."""

    def check(value: Any) -> Any:
        if not holds(value):
            raise PydanticCustomError("refused", "allowed: {allowed}", {"allowed": allowed})
        return value

    return AfterValidator(check)


MOST = 2**31 - 1
"""Largest count: columns of Parquet files hold no larger ones."""
Positive = Annotated[int, Field(ge=1, le=MOST)]
Natural = Annotated[int, Field(ge=0, le=MOST)]
Range = Annotated[
    tuple[Natural, Natural], Field(strict=False), only(lambda ends: ends[0] <= ends[1], "low first")
]
"""Inclusive bounds, low first."""
Workers = Annotated[int, Field(ge=1, le=1024)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
Share = Annotated[float, Field(ge=0, le=1)]
Real = Annotated[float, Field(ge=0, le=1e38)]
PositiveReal = Annotated[float, Field(gt=0, le=1e38)]
"""Within what float32 holds."""
Temperature = Annotated[
    float, only(lambda t: t == 0 or 1e-3 <= t <= 100, "0, greedy, or 0.001 to 100"), AfterValidator(abs)
]

NAME = re.compile(r"(?!.*(.+)\1{19}$)[a-z][a-z0-9_-]{0,63}")  # 20 times the same is a loop to Snakemake
RESERVED = re.compile(
    "recipe|default|null|none|true|false|yes|no|on|off|nan|inf|infinity|con|prn|aux|nul|(com|lpt)[0-9]"
)
"""Files of this project's own; words that YAML, Snakemake or Windows take for something else."""
NAMES = (
    "1 to 64 of a-z, 0-9, _ and -, a letter first, but no reserved word such as null, default or recipe, and "
    "no end that says the same 20 times"
)


def is_name(text: str) -> bool:
    return bool(NAME.fullmatch(text)) and not RESERVED.fullmatch(text)


Name = Annotated[str, only(is_name, NAMES)]
"""Becomes a path, a wildcard, a word of a shell's command and a key of DVC: on every disk another one."""
Text = Annotated[str, Field(min_length=1)]
Url = Annotated[str, Field(pattern=r"^https?://[^\s/?#]+[^\s?#]*$")]
FilePath = Annotated[Text, AfterValidator(os.path.normpath), Field(pattern=r"^/?[\w.][\w./-]*$")]
"""Stands in a shell's command as it is."""
Distinct = Annotated[
    list[T], Field(min_length=1), only(lambda values: len({*values}) == len(values), "each only once")
]


def _present(entries: Any) -> Any:
    return {k: v for k, v in entries.items() if v is not None} if isinstance(entries, Mapping) else entries


Entries = Annotated[dict[Name, T], BeforeValidator(_present)]
"""Values by name; null removes a name, so that a preset can leave out a method, a policy or a sweep."""


class Section(BaseModel):
    """A section accepts its own keys only, and numbers only where numbers belong."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def overlay(
    base: Mapping[str, Any], preset: Mapping[str, Any], whole: Container[str] = ()
) -> dict[str, Any]:
    """`base` with the keys of `preset` put over it, mapping by mapping; lists, and mappings whose key is in
    `whole`, are replaced whole."""
    merged = dict(base)
    for key, value in preset.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping) and key not in whole
        merged[key] = overlay(merged[key], value, whole) if both else value
    return merged


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML 1.2 mapping: `1e-05` is a number. Raises `ParamsError`."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        value = YAML(typ="safe", pure=True).load(text)
    except FileNotFoundError:
        raise ParamsError(f"{path}: no such file") from None
    except OSError as error:
        raise ParamsError(f"{path}: not readable ({error.strerror})") from None
    except UnicodeDecodeError:
        raise ParamsError(f"{path}: not a text in UTF-8") from None
    except Exception as error:  # of the parser: not only its own, on dates, long numbers or deep nesting
        mark, said = getattr(error, "problem_mark", None), getattr(error, "problem", None) or error
        where = f"line {mark.line + 1}: " if mark else ""
        raise ParamsError(f"{path}: not valid YAML ({where}{' '.join(str(said).split())[:200]})") from None
    if not isinstance(value, dict):
        raise ParamsError(f"{path}: expected sections, found {type(value).__name__}")
    return value


def refusal(error: ValidationError) -> str:
    """Returns the first of what a value was refused for: key, value and what is allowed."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"] if not str(part).startswith("["))
    match first["type"]:
        case "extra_forbidden":
            return f"{key}: unknown key"
        case "missing":
            return f"{key}: missing"
    return f"{key}: {quoted(first['input'])} is not allowed; {first['msg']}"
