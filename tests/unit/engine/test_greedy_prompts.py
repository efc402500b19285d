"""Greedy answers to many prompts: the same token by token alone and cold, after prefix hits, in
chunks, preempted, and beside any number of neighbours."""

import random
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import msgspec
import pytest

from nsa_scheduler.sequence import SequenceState
from nsa_serve.config import ModelConfig
from nsa_serve.engine.core import EngineCore
from nsa_serve.engine.messages import AddSequence, EngineStats
from nsa_serve.model import fused, int8
from nsa_serve.params import SamplingParams
from tests.support.dialects import DIALECTS
from tests.support.model_folder import (
    PAGE_SIZE,
    greedy_by_definition,
    model_core,
    tokens_of_all,
    write_sharp_folder,
)
from tests.support.model_folders import TINY

WIDE = msgspec.structs.replace(
    TINY, nsa=DIALECTS["base"], hidden_size=64, head_dim=16, intermediate_size=128
)
"""Sizes that the compiled loop takes."""
MODELS: dict[str, ModelConfig] = {"float32": TINY, "int8": WIDE}
FEW, MANY = 24, 2000
MOST_WAITING = 200
MOST_PREEMPTIONS = 5
"""Of one request, so that long ones end."""
NUM_CHECKED = 25
"""Answers that are computed by the definition too."""


@dataclass(frozen=True)
class World:
    """How the same requests are run."""

    neighbours: int
    budget: int = 512
    num_pages: int = 4096
    caching: bool = True
    preempting: bool = False
    """Whether some sequence loses its pages after every third step, besides those that must."""

    def core(self, folder: Path, dtype: str) -> EngineCore:
        limits: dict[str, Any] = {
            "max_num_seqs": self.neighbours + 1,
            "max_num_batched_tokens": max(self.budget, self.neighbours + 1),
            "num_pages": self.num_pages,
            "enable_prefix_caching": self.caching,
        }
        return model_core(folder, dtype=dtype, **limits)


WORLDS = {
    "beside 1, cold": World(1, caching=False),
    "beside 8, prefix hits, chunks": World(8, budget=16),
    "beside 64, prefix hits": World(64),
    "beside others, prefix hits, chunks, preempted": World(
        64, budget=70, num_pages=36, preempting=True
    ),
    "beside others, cold, chunks, preempted": World(
        16, budget=24, num_pages=36, caching=False, preempting=True
    ),
}


@dataclass(frozen=True)
class Request:
    prompt: tuple[int, ...]
    num_tokens: int

    @property
    def params(self) -> SamplingParams:
        return SamplingParams(max_tokens=self.num_tokens, temperature=0.0, ignore_eos=True)


@cache
def requests(count: int) -> tuple[Request, ...]:
    """Prompts of 1 to 150 tokens, most of them behind one of a few shared beginnings."""
    rng = random.Random(count)
    shared = [[rng.randrange(256) for _ in range(120)] for _ in range(max(2, count // 50))]
    made = []
    for _ in range(count):
        begin = rng.choice(shared)[: rng.randint(0, 120)] if rng.random() < 0.8 else []
        tail = [rng.randrange(256) for _ in range(rng.randint(1, 30))]
        made.append(Request((*begin, *tail), rng.randint(4, 24)))
    return tuple(made)


@pytest.fixture(scope="module", params=["float32", pytest.param("int8", marks=pytest.mark.slow)])
def dtype(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "int8" and not (int8.supported() and fused.INSTALLED):
        pytest.skip("this CPU has no int8 products, or numba is missing")
    return name


@pytest.fixture(scope="module")
def folder(dtype: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sharp_folder(tmp_path_factory.mktemp("model"), MODELS[dtype])[0]


@pytest.fixture(scope="module")
def alone(folder: Path, dtype: str) -> dict[int, list[list[int]]]:
    """Answers alone and cold, by the number of requests; made when they are asked for."""
    return Answers(folder, dtype)


class Answers(dict[int, list[list[int]]]):
    def __init__(self, folder: Path, dtype: str) -> None:
        super().__init__()
        self._folder, self._dtype = folder, dtype

    def __missing__(self, count: int) -> list[list[int]]:
        core = World(0, caching=False).core(self._folder, self._dtype)
        self[count] = [
            tokens_of_all(core, [request.prompt], request.params)[0] for request in requests(count)
        ]
        return self[count]


def run_shuffled(
    core: EngineCore, asked: Sequence[Request], seed: int, *, preempting: bool
) -> tuple[list[list[int]], EngineStats, int]:
    """Requests in another order, at random moments; answers, figures, and the most that ran."""
    rng = random.Random(seed)
    waiting = deque(rng.sample(range(len(asked)), len(asked)))
    answers: list[list[int]] = [[] for _ in asked]
    added: set[int] = set()
    most = 0
    stats = EngineStats()
    while waiting or core.has_work:
        room = len(waiting) if stats.num_waiting < MOST_WAITING else 0
        for _ in range(min(room, rng.choice((0, 0, 1, 2, 30)))):
            i = waiting.popleft()
            added.add(i)
            core.add(AddSequence(i, list(asked[i].prompt), asked[i].params))
        if core.has_work:
            outputs = core.step()
            for output in outputs.outputs:
                assert output.error is None
                answers[output.sequence_id] += output.new_token_ids
                if output.finish_reason is not None:
                    added.remove(output.sequence_id)
            stats = outputs.stats
            most = max(most, stats.num_running)
            if preempting and stats.num_steps % 3 == 0:
                preempt_one(core, added, rng)
    assert core.check_integrity()
    return answers, stats, most


def preempt_one(core: EngineCore, sequence_ids: Iterable[int], rng: random.Random) -> None:
    found = [core._scheduler.find(sequence_id) for sequence_id in sorted(sequence_ids)]
    running = [s for s in found if s and s.state is SequenceState.RUNNING]
    going = [s.sequence_id for s in running if s.num_preemptions < MOST_PREEMPTIONS]
    if going:
        core._scheduler.preempt(rng.choice(going))


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("world", WORLDS.values(), ids=WORLDS.keys())
@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_every_token_is_that_of_the_request_alone(
    folder: Path, dtype: str, alone: dict[int, list[list[int]]], count: int, world: World
) -> None:
    asked = requests(count)
    found, stats, most = run_shuffled(
        world.core(folder, dtype), asked, seed=count, preempting=world.preempting
    )
    assert found == alone[count]
    prompt_tokens = sum(len(request.prompt) for request in asked)
    print(f"{stats.prefix_cache_hits} of {prompt_tokens} prompt tokens found", end=", ")
    print(f"{stats.num_preemptions} preemptions, {most} at once, {stats.num_steps} steps")
    assert (stats.prefix_cache_hits > PAGE_SIZE * count / 10) == world.caching
    if world.preempting:
        assert stats.num_preemptions > count / 4
    elif count == MANY:
        assert most == world.neighbours + 1


@pytest.mark.parametrize("count", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_alone_is_the_definition(
    tmp_path: Path, alone: dict[int, list[list[int]]], dtype: str, count: int
) -> None:
    if dtype != "float32":
        pytest.skip("the definition has the weights before they were rounded")
    _, decoder = write_sharp_folder(tmp_path / "model", MODELS[dtype])
    for request, answer in list(zip(requests(count), alone[count], strict=True))[:NUM_CHECKED]:
        assert answer == greedy_by_definition(decoder, request.prompt, request.num_tokens)
