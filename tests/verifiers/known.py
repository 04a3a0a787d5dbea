"""Verifiers of Countdown by the rules that their projects' code states, written anew from these rules.

Each takes numbers, a target and an answer, as an expression or as steps, and returns whether it accepts.
"""

import ast
import operator
import re
from math import isclose

from sympy.parsing.sympy_parser import parse_expr

from tests.verifiers.read import answers

OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
             ast.FloorDiv: operator.floordiv, ast.Pow: operator.pow, ast.Mod: operator.mod,
             ast.BitXor: operator.xor, ast.UAdd: operator.pos, ast.USub: operator.neg}  # fmt: skip


def python_value(text):
    """What Python makes of an arithmetic expression. Raises `ValueError` where it makes nothing of it."""

    def value(node):
        match node:
            case ast.Constant(value=int() | float() as number):
                return number
            case ast.BinOp(left, op, right) if type(op) in OPERATORS:
                return OPERATORS[type(op)](value(left), value(right))
            case ast.UnaryOp(op, operand) if type(op) in OPERATORS:
                return OPERATORS[type(op)](value(operand))
        raise ValueError(text)

    try:
        return value(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ArithmeticError) as error:
        raise ValueError(text) from error


def same_numbers(numbers, expression, pattern=r"\d+"):
    return sorted(map(int, re.findall(pattern, expression))) == sorted(numbers)


def by_characters(allowed):
    """Only these characters; the runs of digits in it are the numbers that are given; Python's value of it is
    the target to 1e-5."""

    def accepts(numbers, target, expression):
        if not re.fullmatch(allowed, expression) or not same_numbers(numbers, expression):
            return False
        return abs(python_value(expression) - target) < 1e-5

    return accepts


def by_sympy(rule):
    """`rule` says of what SymPy makes of it, the target, the numbers in it and those given whether that will
    do."""

    def accepts(numbers, target, expression):
        used = [int(number) for number in re.findall(r"\b\d+\b", expression)]
        return rule(parse_expr(expression.strip()), target, used, numbers)

    return accepts


def stream_of_search(numbers, target, steps):
    """Python's value of each left side is the integer on the right; numbers on the left are given or results,
    and stay available; the last result is the target."""
    available = set(numbers)
    for step in steps:
        left, right = step.split("=")
        if python_value(left) != int(right) or not {*map(int, re.findall(r"\d+", left))} <= available:
            return False
        available.add(int(right))
    return bool(steps) and int(steps[-1].split("=")[1]) == target


OF_EXPRESSIONS = {
    "TinyZero": by_characters(r"[\d+\-*/().\s]+"),
    "GRPO-Zero": by_characters(r"[0-9+\-*/() ]+"),
    "reasoning-gym, 1edc4f5": by_sympy(
        lambda value, target, used, numbers: int(value) == target and {*used} <= {*numbers}),
    "reasoning-gym, #478": by_sympy(
        lambda value, target, used, numbers: int(value) == target and {*used} == {*numbers}),
    "reasoning-gym, #479": by_sympy(
        lambda value, target, used, numbers: sorted(used) == sorted(numbers)
        and isclose(float(value), target, rel_tol=1e-5, abs_tol=1e-6)),
}  # fmt: skip
OF_STEPS = {"Stream of Search": stream_of_search}


def accepts(verifier, numbers, target, answer):
    """Whether it accepts; an answer that it fails on is none, as in all of these projects."""
    try:
        return bool(verifier(numbers, target, answer))
    except Exception:
        return False


def table() -> str:
    """Returns the table of docs/verifiers.md: of each kind of answer, how often a verifier is wrong."""
    verifiers = {name: ("expression", rule) for name, rule in OF_EXPRESSIONS.items()}
    verifiers |= {name: ("steps", rule) for name, rule in OF_STEPS.items()}
    kinds = list(dict.fromkeys((answer["right"], answer["why"]) for answer in answers()))
    rows = [*((kind, [kind[1]]) for kind in sorted(kinds, key=lambda kind: kind[1])),
            ((True, "**false rejects**"), [why for right, why in kinds if right]),
            ((False, "**false accepts**"), [why for right, why in kinds if not right])]  # fmt: skip
    lines = [f"| answers | {' | '.join(verifiers)} |", f"| --- |{' --- |' * len(verifiers)}"]
    for (right, name), whys in sorted(rows, key=lambda row: not row[0][0]):
        cells = []
        for form, rule in verifiers.values():
            asked = [each for each in answers() if each["why"] in whys and each[form] is not None]
            wrong = sum(accepts(rule, each["numbers"], each["target"], each[form]) != right for each in asked)
            cells.append(f"{wrong} of {len(asked)}" if wrong else "" if asked else "not asked")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
