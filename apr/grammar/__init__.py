"""The thread language: one definition for solvers, training and rollouts. May import `core`, `countdown`."""

from apr.grammar.events import Condition, Malformed
from apr.grammar.language import Language, build_language
from apr.grammar.thread_syntax import ThreadSyntax
from apr.grammar.vocabulary import Vocabulary

__all__ = ["Condition", "Language", "Malformed", "ThreadSyntax", "Vocabulary", "build_language"]
