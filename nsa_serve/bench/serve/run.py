"""A whole run: meet the target, make prompts, warm up, and load it at every point of the sweep."""

import asyncio
import random
import secrets
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np

from nsa_serve import event_loop
from nsa_serve.bench.serve.arrivals import arrival_times
from nsa_serve.bench.serve.client import ask
from nsa_serve.bench.serve.datasets import file_samples, random_samples
from nsa_serve.bench.serve.load import Load
from nsa_serve.bench.serve.needles import needle_samples, sample_hay
from nsa_serve.bench.serve.options import MAX_SEED, BenchOptions, LoadShape, TargetError
from nsa_serve.bench.serve.progress import LiveProgress
from nsa_serve.bench.serve.prompts import Sample
from nsa_serve.bench.serve.records import RequestRecord
from nsa_serve.bench.serve.results import Point, Run, now
from nsa_serve.bench.serve.sizing import EstimatingSizer, Sizer, ask_target, local_sizer
from nsa_serve.bench.serve.statistics import errors_of
from nsa_serve.bench.serve.target import Target
from nsa_serve.errors import ConfigError

OnPoint = Callable[[Point], None]
_WARMUPS_AT_ONCE = 8


def run_bench(options: BenchOptions, on_point: OnPoint) -> Run:
    """Run to the end, or to Ctrl-C, which keeps what has ended until then.

    Raises `TargetError` if the target cannot be tested, `ConfigError` if the data cannot be used.
    """
    return event_loop.run(_Bench(options, on_point).run())


class _Bench:
    def __init__(self, options: BenchOptions, on_point: OnPoint) -> None:
        self._options, self._on_point = options, on_point
        self._seed = secrets.randbelow(MAX_SEED) if options.seed is None else options.seed
        self._load: Load | None = None
        self._stopped = False

    async def run(self) -> Run:
        # Where this is no main thread, Ctrl-C is somebody else's matter.
        with suppress(ValueError, RuntimeError, NotImplementedError):
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._stop)
        options = self._options
        async with Target(options.target) as target:
            await target.find_model()
            await target.agree()
            _check_lengths(options, target.max_model_len)
            sizer = await _sizer(options, target)
            run = Run(
                options=options,
                model=target.model,
                seed=self._seed,
                date=now(),
                sizing=sizer.description,
            )
            for number, shape in enumerate(options.loads()):
                if not self._stopped:
                    await self._point(run, target, sizer, number, shape)
            run.interrupted = self._stopped
            return run

    def _stop(self) -> None:
        """The first Ctrl-C ends the load and keeps what it measured; another ends everything."""
        if self._stopped or self._load is None:
            raise KeyboardInterrupt
        self._stopped = True
        self._load.stop()

    async def _point(
        self, run: Run, target: Target, sizer: Sizer, number: int, shape: LoadShape
    ) -> None:
        options = self._options
        # Every point has prompts of its own, or the later ones would be in the prefix cache.
        warmups, samples = make_samples(options, sizer, random.Random(f"{self._seed}/{number}"))
        await self._warm_up(target, warmups, shape)
        if self._stopped:
            return
        planned = arrival_times(shape, len(samples), np.random.default_rng([self._seed, number]))
        with LiveProgress(_title(options, shape), len(samples)) as progress:

            async def send(sample: Sample, record: RequestRecord) -> None:
                await ask(target, sample, record, progress.tokens)

            self._load = Load(
                samples,
                planned,
                send,
                max_concurrency=shape.max_concurrency,
                max_seconds=options.max_seconds,
                on_start=progress.started,
                on_end=progress.ended,
            )
            records = await self._load.run()
        self._on_point(run.add(shape, records, self._load.duration))

    async def _warm_up(self, target: Target, samples: Sequence[Sample], shape: LoadShape) -> None:
        if not samples:
            return

        async def send(sample: Sample, record: RequestRecord) -> None:
            await ask(target, sample, record)

        at_once = shape.max_concurrency or _WARMUPS_AT_ONCE
        self._load = Load(samples, np.zeros(len(samples)), send, max_concurrency=at_once)
        records = await self._load.run()
        if not self._stopped and not any(record.status == "ok" for record in records):
            text, count = errors_of(records)[0]
            raise TargetError(f"all warm-ups failed, {count} with: {text}")


def make_samples(
    options: BenchOptions, sizer: Sizer, rng: random.Random
) -> tuple[list[Sample], list[Sample]]:
    """Prompts to warm up with, and those to measure; no random prompt is in both."""
    data, num_warmups = options.data, options.num_warmups
    if data.dataset == "needle":
        # Warm-ups of the same texts would put what is measured into the prefix cache.
        warmups = random_samples(data.random, num_warmups, sizer, rng)
        return warmups, needle_samples(data.needle, sizer, rng)
    count = num_warmups + data.num_prompts
    if data.dataset == "random":
        samples = random_samples(data.random, count, sizer, rng)
    else:
        samples = file_samples(data, count, sizer, rng)
    return samples[:num_warmups], samples[num_warmups:]


async def _sizer(options: BenchOptions, target: Target) -> Sizer:
    if options.data.tokenizer is not None:
        return local_sizer(options.data.tokenizer)
    if options.data.dataset == "random" and options.data.random.vocab_size is not None:
        return EstimatingSizer(1.0, 0, "prompts are token ids")
    if options.data.dataset == "needle":
        return await ask_target(target, sample_hay(options.data.needle))
    return await ask_target(target)


def _check_lengths(options: BenchOptions, limit: int | None) -> None:
    if limit is None:
        return
    data = options.data
    longest = {
        "random": data.random.max_tokens,
        "needle": max(data.needle.lengths) + data.needle.output_len,
    }.get(data.dataset, 0)
    if longest > limit:
        raise ConfigError(
            f"prompt and answer have up to {longest} tokens, the target's context {limit}"
        )


def _title(options: BenchOptions, shape: LoadShape) -> str:
    if options.sweep is None:
        return "Load test"
    if options.sweep.over == "rate":
        return f"{shape.request_rate:g} req/s"
    return f"{shape.max_concurrency} in flight"
