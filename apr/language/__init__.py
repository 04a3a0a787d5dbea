"""The thread language: one definition for solvers, training and rollouts. May import `core`."""

from apr.language.events import Condition, Malformed
from apr.language.language import Language, build_language
from apr.language.thread_syntax import ThreadSyntax
from apr.language.vocabulary import Vocabulary

__all__ = ["Condition", "Language", "Malformed", "ThreadSyntax", "Vocabulary", "build_language"]
