"""Sampling parameters, with vLLM's names and meaning."""

import math

import msgspec

from nsa_serve.errors import RequestError

MAX_N = 128
MAX_LOGPROBS = 20


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

    @property
    def greedy(self) -> bool:
        """Whether the highest logit is taken, without randomness."""
        return self.temperature == 0.0


def check_token_ids(params: SamplingParams, vocab_size: int) -> None:
    """Raise RequestError if a parameter names a token that the vocabulary does not have."""
    for name in ("logit_bias", "stop_token_ids"):
        for token_id in getattr(params, name):
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
