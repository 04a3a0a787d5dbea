"""A vocabulary, and what every task says in it."""

from apr.language.thread_syntax import ThreadSyntax
from apr.language.vocabulary import BaseVocabulary


class Language:
    """The words of one model, whichever tokenizer their ids are of, and the framing of threads in them."""

    def __init__(self, vocabulary: BaseVocabulary):
        self.vocabulary = vocabulary
        self.syntax = ThreadSyntax(vocabulary)
