"""Writes `dvc.yaml` of every scale, from the table of stages and what their code imports.

    python -m workflow.write_dvc
"""

from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSeq

from apr.core.files import write_text
from apr.core.params import PRETRAINED, Params, layers_of
from apr.pipeline.code import Code
from apr.pipeline.plan import load_scale, root_of, scales
from apr.pipeline.stages import STAGES, Stage, writers_of

HEAD = """\
# Written by `python -m workflow.write_dvc` from apr/pipeline/stages.py and presets/; run it when they change.
# Snakemake runs the jobs of a stage and skips those that are fresh, so a stage keeps its outputs (`persist`).
"""
PROJECT = (".dvc/config", ".dvc/.gitignore", ".dvcignore")
"""What makes a folder a project of DVC."""
PLOTS = {"4a": "", "7": ", before and after RL", "8": ", T = 0.1"}


def documents(repository: Path = Path()) -> dict[str, str]:
    """Returns what every scale's files for DVC have to be, by their path.

    Each scale but the default is a project of DVC of its own: no command asks after scales that are not run.
    """
    code = Code(repository)
    plots = [{f"Figure {number}": {
        "title": f"accuracy against total tokens{more}", "template": "scatter",
        "x": {f"results/figures/fig{number}.csv": "tokens"},
        "y": {f"results/figures/fig{number}.csv": "accuracy"},
    }} for number, more in PLOTS.items()]  # fmt: skip
    yaml, found = YAML(), dict[str, str]()
    yaml.default_flow_style, yaml.width = None, 110
    for scale in scales(repository):
        root, presets, params = root_of(scale), {}, load_scale(scale, repository)
        if root:
            layers = layers_of(repository / f"presets/{scale}.yaml")
            presets = {f"presets/{path.name}": values for path, values in layers}
            found |= {f"{root}{file}": (repository / file).read_text() for file in PROJECT}
        deps = {name: packages(repository, code.of(*its.modules(params))) for name, its in STAGES.items()}
        stages = {name: declaration(stage, scale, params, presets, deps[name])
                  for name, stage in STAGES.items() if list(stage.each(params))}
        yaml.dump({"stages": stages, "plots": plots}, text := StringIO())
        lines = [line.rstrip() for line in text.getvalue().splitlines()]
        found[f"{root}dvc.yaml"] = HEAD + "\n".join(lines) + "\n"
    return found


def declaration(
    stage: Stage, scale: str, params: Params, presets: Mapping[str, Any], code: list[str]
) -> dict[str, Any]:
    """Returns a stage as DVC wants it, by the `presets` that its scale consists of. Results of the default
    scale are in git, not in DVC's cache."""
    up, to, config = "", "", ""
    if root_of(scale):
        up, to, config = "../../", "cd ../.. && ", f"--config scale={scale} "
    settings, rule = stage.keys(params), f"all_{stage.name}"
    keys = CommentedSeq(settings)
    if up:
        keys = CommentedSeq([{f"{up}params.yaml": settings}])
    for path, preset in presets.items():
        if own := [key for key in settings if sets(preset, key)]:
            keys.append({f"{up}{path}": own})
    keys.fa.set_flow_style()
    tracked = {out: out for other in STAGES.values() for out in other.tracked}
    parts = list(stage.parts(params)) if stage.parts else []
    wholes = [path.split("/{")[0] for path in stage.read(params) if path not in parts]
    read = [*writers_of(wholes, tracked), *parts]
    outs: dict[str, list[Any]] = {}
    for out in stage.tracked:
        cached = {"cache": False} if out.startswith("results") and not up else {}
        kind = "metrics" if out == "results/metrics.json" else "outs"
        outs.setdefault(kind, []).append({out: cached | {"persist": True}})
    return {
        "desc": stage.description,
        "cmd": f"{to}python -m snakemake {config}--allowed-rules {rule} {stage.name} -- {rule}",
        "params": keys,
        "deps": [*(f"{up}{path}" for path in [*code, *([PRETRAINED] if stage.base else [])]), *read],
        **outs,
    }


def sets(preset: Any, dotted: str) -> bool:
    """Whether a preset sets this key of parameters, or a part of it."""
    for section in dotted.split("."):
        preset = preset.get(section) if isinstance(preset, Mapping) else None
    return preset is not None


def packages(repository: Path, files: Iterable[str]) -> list[str]:
    """Returns the folders of `files`; instead of one that has packages in it, the files themselves."""
    folders = {file: Path(file).parent for file in files}
    return sorted({file if any((repository / folder).glob("*/__init__.py")) else folder.as_posix()
                   for file, folder in folders.items()})  # fmt: skip


if __name__ == "__main__":
    for path, text in documents().items():
        write_text(path, text)
