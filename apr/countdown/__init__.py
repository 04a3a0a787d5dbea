"""The task: Countdown problems and the one strict verifier. May import `core`."""

from apr.countdown.operation import Operation, legal_operations
from apr.countdown.problem import PROBLEM_SCHEMA, Problem, read_problems
from apr.countdown.verify import Verdict, verify

__all__ = ["PROBLEM_SCHEMA", "Operation", "Problem", "Verdict", "legal_operations", "read_problems", "verify"]
