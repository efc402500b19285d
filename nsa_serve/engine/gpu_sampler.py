"""From logits to tokens on a device, by the rules of `sampler`, without waiting for it."""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nsa_kernels.sample import reference
from nsa_kernels.sample.params import NUMBER, Penalties, RowParams
from nsa_serve.engine.penalty_table import PenaltyTable, to_device
from nsa_serve.engine.sampler import SamplingState

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Additions:
    """Numbers to be added to logits: biases, and −∞ for stops that may not come yet."""

    places: Tensor
    """[2, E] int64: row and token, no pair twice"""
    values: Tensor
    """[E] float32"""


@dataclass(frozen=True, slots=True)
class Allowed:
    """Tokens that constrained rows may have; a row of none gets token −1."""

    rows: Tensor
    """[R] int64"""
    bits: Tensor
    """[R, ⌈vocab / 8⌉] uint8: bit i % 8 of byte i // 8 is token i's"""

    def apply(self, logits: Tensor) -> None:
        """Take all others out of logits [N, vocab], in place."""
        ids = torch.arange(logits.shape[1], device=logits.device)
        flags = (self.bits[:, ids // 8] >> (ids % 8).to(torch.uint8)) & 1
        logits[self.rows] = logits[self.rows].masked_fill_(flags == 0, -torch.inf)


@dataclass(frozen=True, slots=True)
class SamplingTensors:
    """A step's parameters, on the device or on their way to it."""

    params: RowParams
    penalties: Penalties | None
    additions: Additions | None
    allowed: Allowed | None


class GpuSampler:
    """Samples rows of logits. A row's token depends on its own logits, parameters and place only,
    and is the one that `sampler.sample` gives for it."""

    def __init__(self, vocab_size: int, device: torch.device, *, use_kernels: bool) -> None:
        self._device = device
        self._table = PenaltyTable(vocab_size, device)
        self._static: tuple[list[SamplingState], Floats] | None = None
        self._biases: dict[int, tuple[SamplingState, bool, _Sparse]] = {}
        self._draw, self._penalise = reference.draw, reference.penalise
        if use_kernels:
            from nsa_kernels.sample.draw import draw
            from nsa_kernels.sample.penalties import penalise

            self._draw, self._penalise = draw, penalise

    def __call__(
        self,
        logits: Tensor,
        states: list[SamplingState],
        outputs: SequenceOf[SequenceOf[int]],
    ) -> Tensor:
        """Tokens [N] int64 of logits [N, vocab], −1 where these are not finite. Of the output of a
        state that is `plain` only the length is used."""
        return self.sample(logits, self.prepare(states, outputs))

    def prepare(
        self, states: list[SamplingState], outputs: SequenceOf[SequenceOf[int]]
    ) -> SamplingTensors:
        """What a step's rows are sampled with, sent to the device."""
        edited = [i for i, state in enumerate(states) if not state.plain]
        return SamplingTensors(
            self._params(states, outputs),
            self._penalties(edited, states, outputs) if edited else None,
            self._additions(edited, states, outputs) if edited else None,
            self._allowed(edited, states, outputs) if edited else None,
        )

    def sample(self, logits: Tensor, tensors: SamplingTensors) -> Tensor:
        """Tokens [N] int64 of logits [N, vocab] of any float type, which stay as they were."""
        if tensors.penalties or tensors.additions or tensors.allowed:
            logits = logits.to(torch.float32, copy=True)
        if tensors.penalties is not None:
            self._penalise(logits, tensors.penalties)
        if tensors.additions is not None:
            rows, ids = tensors.additions.places
            logits[rows, ids] += tensors.additions.values
        if tensors.allowed is not None:
            tensors.allowed.apply(logits)
        return self._draw(logits, tensors.params)

    def warm_up(self, dtype: torch.dtype = torch.float32) -> None:
        """Run what draws from logits of this type once, so that it is not compiled while requests
        wait."""
        shape = 1, self._table.counts.shape[1]
        logits = torch.zeros(shape, dtype=dtype, device=self._device)
        table = torch.tensor([[1.0], [2.0], [0.5], [0.0], [0.5]], dtype=torch.float64)
        table = table.to(self._device)
        for params in (
            RowParams(None, filtered=False),
            RowParams(table, filtered=False),
            RowParams(table, filtered=True),
        ):
            self._draw(logits, params)

    def _params(
        self, states: list[SamplingState], outputs: SequenceOf[SequenceOf[int]]
    ) -> RowParams:
        if all(state.params.greedy for state in states):
            return RowParams(None, filtered=False)
        if self._static is None or not _same(self._static[0], states):
            self._static = list(states), _static_params(states)
        table = self._static[1]
        seeds = np.array([state.seed for state in states], dtype=np.uint64)
        lengths = [
            len(state.prompt_token_ids) + len(output)
            for state, output in zip(states, outputs, strict=True)
        ]
        table[NUMBER] = uniforms(seeds, np.array(lengths, dtype=np.uint64))
        filtered = any(state.params.top_k > 0 or state.params.top_p < 1.0 for state in states)
        return RowParams(to_device(torch.from_numpy(table.copy()), self._device), filtered)

    def _penalties(
        self,
        rows: list[int],
        states: list[SamplingState],
        outputs: SequenceOf[SequenceOf[int]],
    ) -> Penalties | None:
        rows = [i for i in rows if _penalised(states[i])]
        if not rows:
            return None
        count_rows = self._table.rows_of([states[i] for i in rows], [outputs[i] for i in rows])
        params = [states[i].params for i in rows]
        values = [
            [p.repetition_penalty for p in params],
            [p.presence_penalty for p in params],
            [p.frequency_penalty for p in params],
        ]
        places = to_device(torch.tensor([rows, count_rows], dtype=torch.int32), self._device)
        return Penalties(
            places[0], self._table.counts, places[1], to_device(torch.tensor(values), self._device)
        )

    def _additions(
        self,
        rows: list[int],
        states: list[SamplingState],
        outputs: SequenceOf[SequenceOf[int]],
    ) -> Additions | None:
        biases = {}
        places: list[NDArray[np.int64]] = []
        values: list[NDArray[np.float32]] = []
        for i in rows:
            state = states[i]
            early = state.may_not_stop(outputs[i])
            if not early and not state.params.logit_bias:
                continue
            old = self._biases.get(id(state))
            bias = old[2] if old is not None and old[1] == early else _bias_of(state, early)
            biases[id(state)] = (state, early, bias)
            places.append(np.stack([np.full_like(bias.ids, i), bias.ids]))
            values.append(bias.values)
        self._biases = biases
        if not places:
            return None
        return Additions(
            to_device(torch.from_numpy(np.concatenate(places, 1)), self._device),
            to_device(torch.from_numpy(np.concatenate(values)), self._device),
        )

    def _allowed(
        self,
        rows: list[int],
        states: list[SamplingState],
        outputs: SequenceOf[SequenceOf[int]],
    ) -> Allowed | None:
        rows = [i for i in rows if states[i].constraint is not None]
        if not rows:
            return None
        constraints = [states[i].constraint for i in rows]
        bits = np.stack(
            [
                constraint.allowed(outputs[i]).view(np.uint8)
                for i, constraint in zip(rows, constraints, strict=True)
                if constraint is not None
            ]
        )
        return Allowed(
            to_device(torch.tensor(rows), self._device),
            to_device(torch.from_numpy(bits), self._device),
        )


@dataclass(frozen=True, slots=True)
class _Sparse:
    """Values of some tokens."""

    ids: NDArray[np.int64]
    values: NDArray[np.float32]


def _bias_of(state: SamplingState, early: bool) -> _Sparse:
    """What one sequence adds to its logits; `early`: stops may not come yet."""
    bias = dict(state.params.logit_bias)
    if early:
        bias |= dict.fromkeys(state.stop_token_ids, -np.inf)
    return _Sparse(
        np.fromiter(bias, dtype=np.int64, count=len(bias)),
        np.fromiter(bias.values(), dtype=np.float32, count=len(bias)),
    )


def _penalised(state: SamplingState) -> bool:
    p = state.params
    return (p.repetition_penalty, p.presence_penalty, p.frequency_penalty) != (1.0, 0.0, 0.0)


def _same(a: list[SamplingState], b: list[SamplingState]) -> bool:
    """Whether two lists hold the same objects."""
    return len(a) == len(b) and all(x is y for x, y in zip(a, b, strict=True))


def _static_params(states: list[SamplingState]) -> Floats:
    """`RowParams.table` of states, but for the numbers."""
    rows = [
        (p.temperature, max(p.top_k, 0), p.top_p, p.min_p, 0.0)
        for p in (state.params for state in states)
    ]
    return np.ascontiguousarray(np.array(rows, dtype=np.float64).T)


def uniforms(seeds: NDArray[np.uint64], positions: NDArray[np.uint64]) -> Floats:
    """`sampler.uniform` of many."""
    z = seeds + (positions + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) * 2.0**-53
