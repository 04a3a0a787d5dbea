"""A test set for verifiers: this project's gives every verdict; what others say is what the table tells."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from apr.core.params import load_params
from apr.language import Language, Vocabulary
from apr.language.tokenizer import build_tokenizer
from apr.rollouts.rollout import Rollout, Status, Thread
from apr.rollouts.verdict import judge
from apr.tasks import open_task
from apr.tasks.countdown.problem import Problem
from apr.tasks.countdown.words import words_of
from tests.verifiers import known
from tests.verifiers.read import answers

ROOT = Path(__file__).parents[2]
ANSWERS = answers()
VOCABULARY = Vocabulary(100, words_of(6), 10)
TOKENIZER = build_tokenizer(VOCABULARY)
TASK = open_task(load_params(ROOT / "params.yaml"), Language(VOCABULARY))
REASONS = {
    "a number used twice": "operand already used",
    "a result used twice": "operand already used",
    "a number left over": "numbers left over",
    "a number left over that would change nothing": "numbers left over",
    "a number that is not given": "operand never seen",
    "digits of two numbers run together": "operand never seen",
    "another target": "last result is",
    "the target on the way, then further": "last result is",
    "a wrong result in the last step": "result is",
    "the right value by wrong steps": "result is",
    "a negative number on the way": "negative result|expected a number",
    "a difference the wrong way round": "result is -|negative result",
    "division with a rest, rounded down": "division is not exact",
    "division with a rest, rounded up": "division is not exact",
    "division by zero": "division by zero",
    "a result before it is made": "operand never seen",
    "two solutions": "operand already used|operand never seen",
    "a very long number": "operand never seen|result is|expected a number",
}
"""What is said of them; of all others that they are no answer, or none at all."""


def judged(answer):
    """The verdict on a root that was prompted with the problem and wrote the steps, whatever is no word as
    `<unk>`."""
    problem = Problem("p", tuple(answer["numbers"]), answer["target"])
    prompt = TASK.prompt(problem)
    ids = prompt + TOKENIZER.encode(" ".join(["answer", " , ".join(answer["steps"]), "end"]))
    sampled = [place >= len(prompt) for place in range(len(ids))]
    thread = Thread(0, -1, 0, len(prompt), ids, sampled, [0.0] * len(ids), Status.DONE)
    return judge(TASK, problem, Rollout("p", [thread]))


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: answer["id"])
def test_ours_gives_the_verdict_and_the_reason(answer):
    found = judged(answer)
    assert found.strict == answer["right"], found
    if answer["right"]:
        assert found.reason == "solved"
    elif expected := REASONS.get(answer["why"]):
        assert re.search(expected, found.reason), found
    else:
        assert found.status == "malformed" or found.reason == "declares no solution", found


def test_there_are_many_answers_and_each_is_another():
    assert len(ANSWERS) >= 200 and len({answer["id"] for answer in ANSWERS}) == len(ANSWERS)
    told = {str([answer[key] for key in ("numbers", "target", "steps", "expression")]) for answer in ANSWERS}
    assert len(told) == len(ANSWERS)
    assert all(answer["numbers"] == sorted(answer["numbers"]) for answer in ANSWERS)
    assert {*REASONS} < {answer["why"] for answer in ANSWERS}


def test_it_is_read_without_this_package(tmp_path):
    script = Path(known.__file__).with_name("read.py")
    assert len(script.read_text().splitlines()) <= 30
    command = [sys.executable, "-I", "-c", script.read_text().replace("__file__", repr(str(script)))]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    counts = [int(line.split()[0]) for line in said.splitlines()]
    assert sum(counts) == len(ANSWERS) and "  20  right  solved\n" in said


def test_an_expression_says_what_the_steps_do():
    """Where the answer is right, by Python; by hand elsewhere."""
    for answer in ANSWERS:
        if answer["right"]:
            plain = re.sub(r"\b0+(?=\d)", "", answer["expression"])
            assert known.python_value(plain) == answer["target"], answer
            assert known.same_numbers(answer["numbers"], plain), answer


def test_known_verifiers_are_as_the_table_says():
    text = (ROOT / "docs/verifiers.md").read_text()
    assert f"<!-- verifiers -->\n{known.table()}\n<!-- /verifiers -->" in text
    assert f"has {len(ANSWERS)}\nanswers" in text and f"gives all {len(ANSWERS)} verdicts" in text


@pytest.mark.parametrize(
    ("verifier", "numbers", "target", "answer", "expected"),
    [
        ("TinyZero", [2, 4, 5], 10, "2.5 * 4", True),
        ("GRPO-Zero", [2, 4, 5], 10, "2.5 * 4", False),
        ("TinyZero", [3, 5, 9], 27, "9 * 3", False),
        ("TinyZero", [3, 5], 8, "3 + 5 = 8", False),
        ("reasoning-gym, 1edc4f5", [3, 5, 9], 27, "9 * 3", True),
        ("reasoning-gym, #478", [3, 5, 9], 27, "9 * 3", False),
        ("reasoning-gym, #478", [1, 1, 1, 81], 81, "81 * 1", True),
        ("reasoning-gym, #479", [1, 1, 1, 81], 81, "81 * 1", False),
        ("reasoning-gym, #478", [1, 2, 7], 4, "7 / 2 + 1", True),
        ("reasoning-gym, #479", [1, 2, 7], 4, "7 / 2 + 1", False),
        ("reasoning-gym, #479", [3, 5], 27, "3 + 5 + 0x13", True),
        ("Stream of Search", [3, 5, 9, 12], 27, ["9 + 9 = 18", "18 + 9 = 27"], True),
        ("Stream of Search", [3, 5], 9, ["3 + 5 = 9"], False),
        ("Stream of Search", [3, 5], 10, ["4 + 6 = 10"], False),
    ],
)
def test_known_verifiers_by_hand(verifier, numbers, target, answer, expected):
    rule = (known.OF_EXPRESSIONS | known.OF_STEPS)[verifier]
    assert known.accepts(rule, numbers, target, answer) == expected
