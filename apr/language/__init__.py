"""Threads as token ids: framing of spawn, join and end, vocabulary, tokenizers. May import `core`."""

from apr.language.language import Language
from apr.language.thread_syntax import Condition, Malformed, ThreadSyntax
from apr.language.vocabulary import Vocabulary

__all__ = ["Condition", "Language", "Malformed", "ThreadSyntax", "Vocabulary"]
