"""Whether a grammar is good, found out where the model's tokenizer is not at hand."""

from collections import OrderedDict
from threading import Lock

import llguidance
from tokenizers import AddedToken

from nsa_serve.params import StructuredOutputs
from nsa_serve.structured.matcher import Grammar, GrammarError
from nsa_serve.structured.source import grammar_source, invalid
from nsa_serve.text.byte_level import byte_level_backend

_MAX_KNOWN = 64


class GrammarChecker:
    """Compiles grammars over single bytes, in milliseconds; remembers those that are good.

    Safe to use from several threads.
    """

    def __init__(self) -> None:
        backend = byte_level_backend(special=False)
        backend.add_special_tokens([AddedToken("<|the end|>", special=True)])
        self._tokenizer = llguidance.LLTokenizer(
            backend.to_str(), n_vocab=257, eos_token=backend.token_to_id("<|the end|>"), slices=[]
        )
        self._known: OrderedDict[str, None] = OrderedDict()
        self._lock = Lock()

    def check(self, spec: StructuredOutputs) -> None:
        """Raise `RequestError`, naming the field, if output cannot be held to this."""
        source = grammar_source(spec)
        with self._lock:
            if source in self._known:
                self._known.move_to_end(source)
                return
        try:
            Grammar(self._tokenizer, source)
        except GrammarError as error:
            raise invalid(spec, error) from None
        with self._lock:
            self._known[source] = None
            while len(self._known) > _MAX_KNOWN:
                self._known.popitem(last=False)
