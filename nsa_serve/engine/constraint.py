"""Which tokens a sequence may have next: a grammar, a list of allowed tokens, words it must not
write."""

from collections.abc import Collection, Sequence

import numpy as np

from nsa_serve.params import SamplingParams
from nsa_serve.structured.matcher import Bits, Grammar, GrammarError, GrammarState, num_words

GRAMMAR_FAILED = "the structured output became too complex to go on"


class Constraint:
    """Follows one sequence's output. The set of allowed tokens is empty only where `failure`
    says why."""

    def __init__(self, params: SamplingParams, vocab_size: int, grammar: Grammar | None) -> None:
        self._all = token_bits(range(vocab_size), vocab_size)
        self._grammar: GrammarState | None = None if grammar is None else grammar.start()
        allowed = params.allowed_token_ids
        self._allowed = None if allowed is None else token_bits(allowed, vocab_size)
        self._bad = params.bad_words_token_ids
        self._computed: tuple[int, Bits] | None = None
        self.failure: str | None = None

    def allowed(self, output: Sequence[int]) -> Bits:
        """Tokens that may follow the output; valid until the next call."""
        if self._computed is None or self._computed[0] != len(output):
            self._computed = len(output), self._compute(output)
        return self._computed[1]

    def leaves_only(self, token_ids: Collection[int], output: Sequence[int]) -> bool:
        """Whether nothing but these tokens may follow the output."""
        return not (self.allowed(output) & ~token_bits(token_ids, 32 * len(self._all))).any()

    def _compute(self, output: Sequence[int]) -> Bits:
        bits = self._all
        if self._grammar is not None:
            try:
                bits = self._grammar.allowed(output)
            except GrammarError:
                self.failure = GRAMMAR_FAILED
                return np.zeros_like(self._all)
        if self._allowed is not None:
            bits = bits & self._allowed
        good = self._without_bad(bits, output)
        return good if good.any() else bits

    def _without_bad(self, bits: Bits, output: Sequence[int]) -> Bits:
        """Without the tokens that would complete a bad word. Where nothing else is left, it may."""
        if not self._bad:
            return bits
        words = bits.copy().view(np.uint32)
        for *before, last in self._bad:
            if not before or list(output[-len(before) :]) == before:
                words[last // 32] &= ~np.uint32(1 << last % 32)
        return words.view(np.int32)


def constraint_of(
    params: SamplingParams, vocab_size: int, grammar: Grammar | None
) -> Constraint | None:
    """The constraint that parameters ask for, if they do."""
    if grammar is None and params.allowed_token_ids is None and not params.bad_words_token_ids:
        return None
    return Constraint(params, vocab_size, grammar)


def token_bits(token_ids: Collection[int], vocab_size: int) -> Bits:
    """The set of these tokens."""
    flags = np.zeros(32 * num_words(vocab_size), dtype=np.uint8)
    flags[list(token_ids)] = 1
    return np.packbits(flags, bitorder="little").view(np.int32)


def flags_of(bits: Bits, vocab_size: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """[vocab] bool of a set."""
    return np.unpackbits(bits.view(np.uint8), count=vocab_size, bitorder="little").view(np.bool_)
