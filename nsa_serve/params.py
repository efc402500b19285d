"""Sampling parameters, with vLLM's names and meaning."""

import math
from typing import Any

import msgspec

from nsa_serve.errors import RequestError

MAX_N = 128
MAX_LOGPROBS = 20
MAX_BAD_WORDS = 256

_KINDS = ("json", "json_object", "regex", "choice", "grammar")


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the output must match: exactly one of these. Raises `RequestError` otherwise."""

    json: str | dict[str, Any] | None = None
    """A JSON schema; kept as text."""
    json_object: bool = False
    """Any JSON object."""
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    """In Lark's notation, or in GBNF."""
    field: str = "structured_outputs"
    """What a request calls it, for errors."""

    def __post_init__(self) -> None:
        given = [name for name in _KINDS if getattr(self, name) not in (None, False)]
        if len(given) != 1:
            text = f"exactly one of {', '.join(_KINDS)} must be given"
            raise RequestError(f"{self.field}: {text}", param=self.field)
        if self.choice is not None and not self.choice:
            raise RequestError(f"{self.field}: choice must not be empty", param=self.field)
        if isinstance(self.json, dict):
            msgspec.structs.force_setattr(self, "json", self._as_text(self.json))

    def _as_text(self, schema: dict[str, Any]) -> str:
        try:
            return msgspec.json.encode(schema).decode()
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(f"{self.field}: no JSON: {error}", param=self.field) from None

    @property
    def schema(self) -> str | None:
        """The text of the JSON schema, if that is what is asked for."""
        assert not isinstance(self.json, dict), "made text when it was made"
        return self.json


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to continue one prompt. Raises `RequestError`, naming the field, if out of range."""

    n: int = 1
    max_tokens: int | None = 16
    """None: whatever the context still holds."""
    min_tokens: int = 0
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 (or −1) keeps all."""
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: dict[int, float] = {}
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    """Alternatives reported beside the sampled token; None reports nothing."""
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    allowed_token_ids: tuple[int, ...] | None = None
    """None allows all."""
    bad_words: tuple[str, ...] = ()
    bad_words_token_ids: tuple[tuple[int, ...], ...] = ()
    """Made of `bad_words` by whoever has the tokenizer."""
    structured_outputs: StructuredOutputs | None = None
    truncate_prompt_tokens: int | None = None
    """Keep this many of the prompt's last tokens; −1: as many as the context holds."""

    def __post_init__(self) -> None:
        _in_range("n", self.n, 1, MAX_N)
        if self.max_tokens is not None:
            _in_range("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _in_range("min_tokens", self.min_tokens, 0, 2**31 - 1)
        _in_range("temperature", self.temperature, 0.0, 100.0)
        _in_range("top_p", self.top_p, 0.0, 1.0)
        if self.top_p == 0.0:
            raise RequestError("top_p must be in (0, 1], got 0", param="top_p")
        _in_range("top_k", self.top_k, -1, 2**31 - 1)
        _in_range("min_p", self.min_p, 0.0, 1.0)
        if self.seed is not None:
            _in_range("seed", self.seed, -(2**63), 2**64 - 1)
        _in_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _in_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _in_range("repetition_penalty", self.repetition_penalty, 1e-2, 100.0)
        for token, bias in self.logit_bias.items():
            _in_range(f"logit_bias[{token}]", bias, -100.0, 100.0, param="logit_bias")
        if any(not text for text in self.stop):
            raise RequestError("stop strings must not be empty", param="stop")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None:
                _in_range(name, value, 0, MAX_LOGPROBS)

        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise RequestError("allowed_token_ids must not be empty", param="allowed_token_ids")
        if len(self.bad_words) > MAX_BAD_WORDS or not all(self.bad_words):
            text = f"bad_words must be at most {MAX_BAD_WORDS} texts that are not empty"
            raise RequestError(text, param="bad_words")
        if self.truncate_prompt_tokens is not None and self.truncate_prompt_tokens != -1:
            _in_range("truncate_prompt_tokens", self.truncate_prompt_tokens, 1, 2**31 - 1)
        self._check_structured()

    def _check_structured(self) -> None:
        if self.structured_outputs is None:
            return
        field = self.structured_outputs.field
        if self.ignore_eos:
            raise RequestError(f"ignore_eos cannot go with {field}", param="ignore_eos")
        if self.allowed_token_ids is not None:
            text = f"allowed_token_ids cannot go with {field}"
            raise RequestError(text, param="allowed_token_ids")

    @property
    def greedy(self) -> bool:
        """Whether the highest logit is taken, without randomness."""
        return self.temperature == 0.0


def check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    """Raise RequestError if a parameter names a token that the vocabulary does not have."""
    for name in ("logit_bias", "stop_token_ids", "allowed_token_ids"):
        for token_id in getattr(params, name) or ():
            if not 0 <= token_id < vocab_size:
                raise RequestError(
                    f"{name}: token id {token_id} is not in the vocabulary of {vocab_size}",
                    param=name,
                )


def _in_range(
    name: str, value: float, low: float, high: float, *, param: str | None = None
) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise RequestError(
            f"{name} must be between {low} and {high}, got {value}", param=param or name
        )
