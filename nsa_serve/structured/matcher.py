"""A compiled grammar, and the state of one output that follows it."""

from collections.abc import Sequence

import llguidance
import numpy as np
from llguidance.numpy import fill_next_token_bitmask
from numpy.typing import NDArray

Bits = NDArray[np.int32]
"""[⌈vocab / 32⌉]: bit i % 32 of word i // 32 says whether token i may come next."""


class GrammarError(Exception):
    """The grammar cannot be compiled, or cannot go on within its limits."""


def parser_limits() -> llguidance.LLParserLimits:
    """Bounds that keep a compilation and every step within some tens of milliseconds, and what a
    grammar holds within some tens of megabytes."""
    return llguidance.LLParserLimits(
        max_items_in_row=2_000,
        initial_lexer_fuel=500_000,
        step_lexer_fuel=100_000,
        step_max_items=20_000,
        max_lexer_states=20_000,
        max_grammar_size=100_000,
        precompute_large_lexemes=False,
        verbose_errors=False,
    )


def num_words(vocab_size: int) -> int:
    """Words of `Bits`."""
    return -(-vocab_size // 32)


class Grammar:
    """A grammar compiled for one tokenizer. Raises `GrammarError` if it is no good, or nothing at
    all matches it."""

    def __init__(self, tokenizer: llguidance.LLTokenizer, source: str) -> None:
        self._vocab_size = tokenizer.vocab_size
        self._matcher = llguidance.LLMatcher(tokenizer, source, log_level=0, limits=parser_limits())
        _raise_if_bad(self._matcher)
        first = self.start()
        first.allowed([])
        if first.ended and not first.accepting:
            raise GrammarError("nothing matches it")

    def start(self) -> "GrammarState":
        """The state of a new output."""
        return GrammarState(self._matcher.deep_copy(), self._vocab_size)


class GrammarState:
    """What one output may go on with. It follows the output that it is shown, so a step that was
    dropped, or a preemption, leaves no trace in it."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros((1, num_words(vocab_size)), dtype=np.int32)
        self._num_consumed = 0
        self._computed = -1

    @property
    def accepting(self) -> bool:
        """Whether the output so far is whole."""
        return self._matcher.is_accepting()

    @property
    def ended(self) -> bool:
        """Whether nothing but an end-of-text token may follow."""
        return self._matcher.is_stopped()

    def allowed(self, output: Sequence[int]) -> Bits:
        """Tokens that may follow an output, which goes on from the one shown before; never none.

        Valid until the next call. Raises `GrammarError`, now and ever after, if the output does
        not match or the grammar's limits are passed.
        """
        if self._computed == len(output):
            return self._bits[0]
        if len(output) < self._num_consumed:
            self._matcher.reset()
            self._num_consumed = 0
        new = list(output[self._num_consumed :])
        if new and not self._matcher.consume_tokens(new):
            raise GrammarError(self._matcher.get_error() or "the output does not match")
        self._num_consumed = len(output)
        fill_next_token_bitmask(self._matcher, self._bits)
        _raise_if_bad(self._matcher)
        if not self._bits.any():
            raise GrammarError("no token can follow")
        self._computed = len(output)
        return self._bits[0]


def _raise_if_bad(matcher: llguidance.LLMatcher) -> None:
    if matcher.is_error():
        raise GrammarError(matcher.get_error().partition("<non-verbose/>")[0].strip())
