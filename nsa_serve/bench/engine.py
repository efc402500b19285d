"""`nsa-serve bench latency` and `throughput`: a whole engine, from token ids to token ids."""

import itertools
import os
import random
import resource
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from nsa_serve.bench.results import (
    LEFT_OUT,
    EngineReport,
    LatencyPoint,
    Spread,
    Throughput,
)
from nsa_serve.config import EngineConfig
from nsa_serve.engine.compile_ahead import triton_cache
from nsa_serve.engine.core import EngineCore
from nsa_serve.engine.load import load_runner
from nsa_serve.engine.messages import AddSequence, SequenceOutput
from nsa_serve.errors import GenerationError
from nsa_serve.params import SamplingParams

_SEED = 0
_WARM_UP_TOKENS = 8
_TOKENS_OF_A_STEP = 512
"""Prompt tokens of a step, at least: while prompts are computed, others answer a token a step."""
_IMPORTED = time.monotonic()
_START_FIELD = 19
"""Of /proc/PID/stat, counted behind the name: when the process began, in ticks after boot."""


@dataclass(slots=True)
class _Running:
    """When the tokens of one request came, on the clock of `perf_counter`."""

    times: list[float]
    num_tokens: int = 0


class EngineBench:
    """A loaded engine that is given random prompts. Text is left out on both ends."""

    def __init__(self, config: EngineConfig) -> None:
        self._max_num_queued = config.max_num_queued_reqs
        self._kernels_cached = kernels_cached()
        self._core = EngineCore(config, load_runner(config))
        self.start_seconds = process_age()
        """From the start of the process, imports included."""
        self.info = self._core.info
        self._random = random.Random(_SEED)
        self._ids = iter(range(sys.maxsize))

    def latency(
        self,
        batch: int,
        input_len: int,
        output_len: int,
        repeats: int,
        max_tokens: int = sys.maxsize,
    ) -> LatencyPoint:
        """One batch that starts together, once to warm up and then several times; none whose
        prompts are longer than `max_tokens` together."""
        point = LatencyPoint(batch=batch, input_len=input_len, output_len=output_len)
        if batch * input_len > max_tokens:
            return msgspec.structs.replace(point, skipped=LEFT_OUT)
        if reason := self._does_not_fit(batch, input_len + output_len):
            return msgspec.structs.replace(point, skipped=reason)
        warm_up = min(output_len, _WARM_UP_TOKENS)
        self._run(self._requests([input_len] * batch, [warm_up] * batch), batch)
        # Some answer while others' prompts are computed: all go on until the last is done.
        most = min(
            output_len + batch * input_len // _TOKENS_OF_A_STEP,
            self.info.max_model_len - input_len,
        )
        first, steps = [], []
        for _ in range(repeats):
            requests = self._requests([input_len] * batch, [most] * batch)
            started = time.perf_counter()
            done = self._run(requests, batch, enough=output_len)
            first += [request.times[0] - started for request in done]
            steps += list(common_steps([request.times for request in done]))
        return msgspec.structs.replace(point, first_token=spread(first), step=spread(steps))

    def throughput(self, input_lens: list[int], output_lens: list[int]) -> Throughput:
        """All requests as fast as they are taken, after others, as many as run at once."""
        return self.throughput_of([self._prompt(length) for length in input_lens], output_lens)

    def throughput_of(self, prompts: list[list[int]], output_lens: list[int]) -> Throughput:
        """As `throughput`, of prompts that are given."""
        input_lens = [len(prompt) for prompt in prompts]
        batch = min(len(prompts), self.info.max_num_seqs)
        self._run(self._requests(input_lens[:batch], output_lens[:batch]), batch)
        requests = list(map(self._request, prompts, output_lens))
        queued = min(self._max_num_queued, self.info.max_num_seqs)
        started = time.perf_counter()
        done = self._run(requests, self.info.max_num_seqs + queued)
        return Throughput(
            num_prompts=len(done),
            input_tokens=sum(input_lens),
            output_tokens=sum(request.num_tokens for request in done),
            seconds=time.perf_counter() - started,
        )

    def report(
        self, latency: Iterable[LatencyPoint] = (), throughput: Throughput | None = None
    ) -> EngineReport:
        """What was measured, with the engine's own figures."""
        import torch

        from nsa_serve.bench.machine import this_machine

        device = torch.device(self.info.device)
        return EngineReport(
            machine=this_machine(device),
            model=self.info.model_name,
            attention=self.info.attention,
            dtype=self.info.dtype,
            start_seconds=self.start_seconds,
            kernels_cached=self._kernels_cached,
            peak_memory_bytes=peak_memory(device.type == "cuda"),
            cache_tokens=self.info.num_pages * self.info.page_size,
            latency=list(latency),
            throughput=throughput,
        )

    def _does_not_fit(self, batch: int, length: int) -> str:
        """Why a batch of such requests cannot run at once; empty if it can."""
        if batch > self.info.max_num_seqs:
            return f"max_num_seqs is {self.info.max_num_seqs}"
        if length > self.info.max_model_len:
            return f"max_model_len is {self.info.max_model_len}"
        if batch * -(-length // self.info.page_size) > self.info.num_pages:
            return f"the cache holds {self.info.num_pages * self.info.page_size} tokens"
        return ""

    def _requests(self, input_lens: list[int], output_lens: list[int]) -> list[AddSequence]:
        """Greedy requests of random tokens."""
        return [
            self._request(self._prompt(input_len), output_len)
            for input_len, output_len in zip(input_lens, output_lens, strict=True)
        ]

    def _prompt(self, length: int) -> list[int]:
        return self._random.choices(range(self.info.vocab_size), k=length)

    def _request(self, prompt: list[int], output_len: int) -> AddSequence:
        params = SamplingParams(temperature=0.0, max_tokens=output_len, ignore_eos=True)
        return AddSequence(next(self._ids), prompt, params)

    def _run(
        self, requests: list[AddSequence], at_once: int, enough: int = sys.maxsize
    ) -> list[_Running]:
        """Give the core at most so many requests at once, until all are done or all have `enough`
        tokens."""
        waiting = requests[::-1]
        running: dict[int, _Running] = {}
        num_running = 0
        while waiting or num_running:
            while waiting and num_running < at_once:
                self._core.add(waiting[-1])
                running[waiting.pop().sequence_id] = _Running([])
                num_running += 1
            outputs = self._core.step().outputs
            now = time.perf_counter()
            num_running -= sum(_note(running[o.sequence_id], o, now) for o in outputs)
            if not waiting and min(r.num_tokens for r in running.values()) >= enough:
                self._core.abort(list(running))
                break
        return list(running.values())


def _note(request: _Running, output: SequenceOutput, now: float) -> bool:
    """Take in what a step gave; whether the request is done with it."""
    if output.error is not None:
        raise GenerationError(f"a request of the benchmark failed: {output.error}")
    request.times += [now] * bool(output.new_token_ids)
    request.num_tokens += len(output.new_token_ids)
    return output.finish_reason is not None


def common_steps(times: list[list[float]]) -> Iterator[float]:
    """Seconds between tokens while every request of a batch decodes: from the moment when the last
    has its first token to that when the first has its last."""
    begin, end = max(each[0] for each in times), min(each[-1] for each in times)
    moments = sorted({t for each in times for t in each if begin <= t <= end})
    for before, after in itertools.pairwise(moments):
        yield after - before


def spread(seconds: list[float]) -> Spread | None:
    """Mean and percentiles in milliseconds; None of nothing."""
    if not seconds:
        return None
    values = np.array(seconds) * 1e3
    p50, p90, p99 = (float(p) for p in np.percentile(values, (50, 90, 99)))
    return Spread(mean=float(values.mean()), p50=p50, p90=p90, p99=p99, count=len(seconds))


def random_lengths(count: int, length: int, vary: float) -> list[int]:
    """Lengths between (1 − vary) · length and length, the same at every call."""
    generator = random.Random(length)
    low = max(1, round(length * (1.0 - vary)))
    return [generator.randint(low, length) for _ in range(count)]


def process_age() -> float:
    """Seconds since this process began; since this module was imported where no /proc says."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return time.monotonic() - _IMPORTED
    ticks = int(fields[_START_FIELD])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def kernels_cached() -> bool:
    """Whether Triton's folder of compiled kernels holds any."""
    folder = triton_cache()
    return folder.is_dir() and any(folder.iterdir())


def peak_memory(on_gpu: bool) -> int:
    """Bytes that this process has held at most."""
    if on_gpu:
        import torch

        return int(torch.cuda.max_memory_reserved())
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
