"""The page pool is checked at idle moments, for less than a hundredth of the time of steps."""

import random
import socket
import threading
import time

import pytest
from msgspec.msgpack import Decoder

from nsa_serve.config import EngineConfig
from nsa_serve.engine.core import EngineCore
from nsa_serve.engine.idle_check import LARGEST_SHARE, IdleCheck
from nsa_serve.engine.messages import AddSequence, FromCore, StepOutputs, ToCore
from nsa_serve.engine.process import _SECONDS_IDLE_BEFORE_CHECK, _loop
from nsa_serve.engine.stand_in import StandInOptions, StandInRunner
from nsa_serve.engine.transport import Channel
from nsa_serve.params import SamplingParams
from tests.support.engine import stand_in_config
from tests.support.hand_clock import HandClock


class TimedCore(EngineCore):
    """Takes as long as it is told, by a clock turned by hand."""

    def __init__(self, clock: HandClock) -> None:
        config = stand_in_config()
        super().__init__(config, StandInRunner(config, StandInOptions()))
        self.clock = clock
        self.seconds_to_check = 0.02
        self.num_checks = 0

    def step(self) -> StepOutputs:
        self.clock.turn(0.1)
        return super().step()

    def check_integrity(self) -> bool:
        self.clock.turn(self.seconds_to_check)
        self.num_checks += 1
        return super().check_integrity()


def test_a_check_waits_until_it_is_a_small_share_of_the_steps() -> None:
    core = TimedCore(HandClock())
    check = IdleCheck(core, core.clock)
    assert core.num_checks == 1  # nobody waits yet
    for _ in range(39):
        check.step()
        check.idle()
    assert core.num_checks == 1
    check.step()
    check.step()
    check.idle()
    assert core.num_checks == 2
    check.idle()
    assert core.num_checks == 2


def test_a_check_that_takes_longer_comes_less_often() -> None:
    core = TimedCore(HandClock())
    check = IdleCheck(core, core.clock)
    core.seconds_to_check = 0.03
    step_seconds = check_seconds = 0.0
    for _ in range(1000):
        check.step()
        step_seconds += 0.1
        before = core.clock.now
        check.idle()
        check_seconds += core.clock.now - before
    assert core.num_checks > 10
    assert 0.5 * LARGEST_SHARE / 2 < check_seconds / step_seconds < LARGEST_SHARE


SECONDS_OF_A_STEP = 0.003


class MeasuredCore(EngineCore):
    """Adds up what its steps and checks take: CPU time, for a test's machine has other work, and
    what the stand-in waits."""

    step_seconds = check_seconds = 0.0
    num_checks = 0

    def step(self) -> StepOutputs:
        began = time.thread_time()
        outputs = super().step()
        self.step_seconds += time.thread_time() - began
        if outputs.stats.step_tokens:
            self.step_seconds += SECONDS_OF_A_STEP
        return outputs

    def check_integrity(self) -> bool:
        began = time.thread_time()
        good = super().check_integrity()
        self.check_seconds += time.thread_time() - began
        self.num_checks += 1
        return good


@pytest.mark.slow
def test_checks_of_a_large_pool_take_less_than_a_hundredth_of_the_steps() -> None:
    """100,000 pages, most of them cached; the loop of the engine process, and 60 idle moments."""
    config = EngineConfig(
        runner="stand-in",
        block_size=16,
        num_pages=100_000,
        max_num_seqs=64,
        max_num_batched_tokens=8192,
        max_num_queued_reqs=2000,
    )
    options = StandInOptions(step_seconds=SECONDS_OF_A_STEP)
    core = MeasuredCore(config, StandInRunner(config, options))
    near, far = socket.socketpair()
    loop = threading.Thread(target=_until_hang_up, args=(core, far))
    with near:
        loop.start()
        client = Channel[FromCore](near, Decoder(FromCore))
        rng = random.Random(0)
        fill = [[rng.randrange(256) for _ in range(4000)] for _ in range(400)]
        _answer(client, fill, first_id=0, num_tokens=1)
        core.step_seconds = core.check_seconds = 0.0  # of the load alone, without the first check
        core.num_checks = 0
        num_idle = 60
        for i in range(num_idle):
            prompts = [[rng.randrange(256) for _ in range(200)] for _ in range(32)]
            _answer(client, prompts, first_id=1000 * (i + 1), num_tokens=100)
            time.sleep(_SECONDS_IDLE_BEFORE_CHECK + 0.2)
    loop.join()
    share = core.check_seconds / core.step_seconds
    each = core.check_seconds / max(1, core.num_checks)
    print(
        f"{core.num_checks} checks at {num_idle} idle moments, {1000 * each:.1f} ms each: "
        f"{100 * share:.2f} % of {core.step_seconds:.1f} s of steps"
    )
    assert core.num_checks >= 1
    assert share < LARGEST_SHARE


def _until_hang_up(core: EngineCore, sock: socket.socket) -> None:
    with sock, pytest.raises((EOFError, ConnectionError)):
        _loop(core, Channel[ToCore](sock, Decoder(ToCore)))


def _answer(
    client: Channel[FromCore], prompts: list[list[int]], *, first_id: int, num_tokens: int
) -> None:
    """Have all of them continued, and wait for the end."""
    params = SamplingParams(max_tokens=num_tokens, temperature=0.0)
    for i, prompt in enumerate(prompts):
        client.send(AddSequence(first_id + i, prompt, params))
    num_left = len(prompts)
    while num_left:
        for message in client.receive(timeout=60):
            assert isinstance(message, StepOutputs)
            num_left -= sum(output.finish_reason is not None for output in message.outputs)
