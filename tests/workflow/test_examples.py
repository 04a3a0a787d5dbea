"""Each script of examples/ runs, where everything has been made at the smoke scale, as its docstring says."""

import ast
import re
import shlex
from pathlib import Path

import pytest

SMALLER = {"3 5 9 12 -> 27": "3 5 9 -> 17"}
"""What problems of three numbers, as the smoke scale has them, are asked instead."""
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.py"))
SAYS = {
    "credit_agreement": r"broadcast  root  \d+ of \d+ as the oracle, \d+ against it\n(.*\n)*oracle  ",
    "decode_tree": r"<root> 17 .*\n(.*\n)*.+; \d+ tokens, \d+ one after another",
    "own_reward": r"step 1: reward -?[\d.]+, solved [\d.]+%, [\d.]+ children\nstep 2: ",
    "read_evaluations": r"children .*\n( +0 +\w+ +[\d.]+% \[[\d.]+%, [\d.]+%\] +\d+ +\d+\n)+",
}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_as_it_says(made, path, tmp_path):
    text = path.read_text()
    assert len(text.splitlines()) <= 40
    command = shlex.split(re.search(r"^ *python (.*)$", ast.get_docstring(ast.parse(text)), re.M)[1])
    written = {"data/models/frugal": str(tmp_path / "frugal")}  # beside what was made, for other tests
    said = made.run("python", *((SMALLER | written).get(word, word) for word in command))
    assert re.search(SAYS[path.stem], said), said
