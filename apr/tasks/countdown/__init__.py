"""Countdown: problems, the one strict verifier, and the symbolic solvers SoS, SoS+ and APR."""

from apr.language.operation import Operation, legal_operations
from apr.tasks.countdown.problem import PROBLEM_SCHEMA, Problem, read_problems
from apr.tasks.countdown.verify import Verdict, verify

__all__ = ["PROBLEM_SCHEMA", "Operation", "Problem", "Verdict", "legal_operations", "read_problems", "verify"]
