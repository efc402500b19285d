"""From token ids to text: whole characters only, and stop strings."""

from nsa_serve.engine.messages import SequenceOutput
from nsa_serve.outputs import CompletionOutput, FinishReason, TokenLogprobs
from nsa_serve.params import SamplingParams
from nsa_serve.text.tokenizer import Tokenizer


class StopStrings:
    """Ends a text at the first stop string, wherever the pieces that bring it are cut.

    Text that could still become a stop string is held back. Of several stop strings the one that
    is complete first wins, of those the longest.
    """

    def __init__(self, stop: tuple[str, ...], *, include: bool) -> None:
        self._stop = sorted(stop, key=len, reverse=True)
        self._include = include
        self._held = ""
        self.matched: str | None = None

    def push(self, piece: str, *, may_end: bool = True) -> str:
        """Take in new text and give what may be shown; nothing more once `matched` is set.

        With `may_end` false, stop strings that are complete by now are passed over.
        """
        if not self._stop:
            return piece
        if not piece or self.matched is not None:
            return ""
        text = self._held + piece
        found = self._first_match(text) if may_end else None
        if found is not None:
            end, self.matched = found
            self._held = ""
            return text[: end if self._include else end - len(self.matched)]
        shown = len(text) - self._num_pending(text)
        self._held = text[shown:]
        return text[:shown]

    def flush(self) -> str:
        """What is held back, when no more text will come."""
        held, self._held = self._held, ""
        return held

    def _first_match(self, text: str) -> tuple[int, str] | None:
        """Where the first match ends, and the match."""
        ends = [(start + len(stop), stop) for stop in self._stop if (start := text.find(stop)) >= 0]
        return min(ends, key=lambda found: found[0], default=None)

    def _num_pending(self, text: str) -> int:
        """Length of the longest end of the text with which a stop string begins."""
        for length in range(min(len(text), len(self._stop[0]) - 1), 0, -1):
            tail = text[-length:]
            if any(len(stop) > length and stop.startswith(tail) for stop in self._stop):
                return length
        return 0


class Continuation:
    """One of the n continuations of a prompt: gathers what is new until it is taken."""

    def __init__(self, index: int, tokenizer: Tokenizer, params: SamplingParams) -> None:
        self._index = index
        self._params = params
        self._stream = tokenizer.stream(params.skip_special_tokens)
        self._stop = StopStrings(params.stop, include=params.include_stop_str_in_output)
        self._num_tokens = 0
        self._cumulative_logprob = None if params.logprobs is None else 0.0
        self._new = self._empty()
        self._has_new = False
        self.finished = False

    def push(self, output: SequenceOutput) -> None:
        """Take in what a step gave. A stop string may finish it though the core goes on."""
        if self.finished:
            return
        token_ids = output.new_token_ids
        # A stop token counts as output but is no text, unless stop strings are shown too.
        silent = output.finish_reason == "stop" and not self._params.include_stop_str_in_output
        last = len(token_ids) - 1
        for i, token_id in enumerate(token_ids):
            self._push_token(token_id, silent=silent and i == last)
            self._push_logprobs(output.logprobs, i)
            if self._stop.matched is not None:
                self._finish("stop", self._stop.matched)
                return
        if output.finish_reason is not None:
            self._finish(output.finish_reason, output.stop_token_id)

    def abort(self) -> None:
        """Finish it from outside."""
        if not self.finished:
            self._finish("abort", None)

    def take(self) -> CompletionOutput | None:
        """What is new since the last call, if anything is."""
        if not self._has_new:
            return None
        new, self._new, self._has_new = self._new, self._empty(), False
        return new

    def _push_token(self, token_id: int, *, silent: bool) -> None:
        self._num_tokens += 1
        self._has_new = True
        self._new.token_ids.append(token_id)
        piece = None if silent else self._stream.step(token_id)
        if piece:
            may_end = self._num_tokens >= self._params.min_tokens
            self._new.text += self._stop.push(piece, may_end=may_end)

    def _push_logprobs(self, logprobs: list[TokenLogprobs] | None, i: int) -> None:
        if logprobs is None or self._cumulative_logprob is None:
            return
        self._cumulative_logprob += logprobs[i].chosen.logprob
        self._new.cumulative_logprob = self._cumulative_logprob
        if self._new.logprobs is None:
            self._new.logprobs = []
        self._new.logprobs.append(logprobs[i])

    def _finish(self, reason: FinishReason, stop_reason: int | str | None) -> None:
        if self._stop.matched is None:
            self._new.text += self._stop.push(self._stream.flush(), may_end=False)
            self._new.text += self._stop.flush()
        self._new.finish_reason = reason
        self._new.stop_reason = stop_reason
        self._has_new = self.finished = True

    def _empty(self) -> CompletionOutput:
        return CompletionOutput(
            index=self._index,
            text="",
            token_ids=[],
            cumulative_logprob=self._cumulative_logprob,
        )
