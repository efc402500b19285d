"""Grammars for a model's own tokens, compiled beside the steps that go on meanwhile."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from threading import Lock

import llguidance

from nsa_serve.errors import RequestError
from nsa_serve.params import StructuredOutputs
from nsa_serve.structured.matcher import Grammar, GrammarError
from nsa_serve.structured.source import grammar_source, invalid
from nsa_serve.structured.threads import grammar_threads

_NUM_THREADS = 2
_MAX_KEPT = 32
"""Compiled grammars that are kept for requests to come; each may take some megabytes."""


class GrammarCompiler:
    """Compiles on threads of its own; most of a compilation runs without the interpreter's lock."""

    def __init__(
        self,
        tokenizer_json: Callable[[], str | None],
        vocab_size: int,
        eos_token_ids: Sequence[int],
    ) -> None:
        """`tokenizer_json` reads the text of tokenizer.json; it is called when first needed."""
        self._tokenizer_json = tokenizer_json
        self._vocab_size, self._eos_token_ids = vocab_size, eos_token_ids
        self._threads = grammar_threads(_NUM_THREADS)
        self._made: llguidance.LLTokenizer | None = None
        self._making = Lock()
        self._kept: OrderedDict[str, Grammar] = OrderedDict()
        self._lock = Lock()

    def prepare(self) -> None:
        """Read the tokenizer now; a thread holds the interpreter's lock for a part of a second."""
        self._threads.submit(self._tokenizer)

    def submit(self, spec: StructuredOutputs) -> Future[Grammar]:
        """The compiled grammar, or the `RequestError` that says why there is none."""
        return self._threads.submit(self._compile, spec)

    def _compile(self, spec: StructuredOutputs) -> Grammar:
        source = grammar_source(spec)
        with self._lock:
            if source in self._kept:
                self._kept.move_to_end(source)
                return self._kept[source]
        try:
            grammar = Grammar(self._tokenizer(), source)
        except GrammarError as error:
            raise invalid(spec, error) from None
        with self._lock:
            self._kept[source] = grammar
            while len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)
        return grammar

    def _tokenizer(self) -> llguidance.LLTokenizer:
        with self._making:
            if self._made is None:
                self._made = self._read()
            return self._made

    def _read(self) -> llguidance.LLTokenizer:
        text = self._tokenizer_json() if self._eos_token_ids else None
        if text is None:
            raise RequestError(NO_END, param="structured_outputs")
        try:
            return llguidance.LLTokenizer(
                text, n_vocab=self._vocab_size, eos_token=list(self._eos_token_ids)
            )
        except ValueError as error:
            reason = f"this model's tokenizer cannot be constrained: {error}"
            raise RequestError(reason, param="structured_outputs") from None


NO_END = "this model has no end-of-text token, which structured output needs"
