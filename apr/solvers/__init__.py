"""Symbolic solvers SoS, SoS+ and APR, and their traces. May import `core`, `countdown`, `grammar`."""

from apr.solvers.search import Trace, TraceThread, solve_trace
from apr.solvers.traces import TRACE_SCHEMA, make_traces

__all__ = ["TRACE_SCHEMA", "Trace", "TraceThread", "make_traces", "solve_trace"]
