"""The engine process: its start, its end, and what it does while nobody asks anything of it."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nsa_serve.config import EngineConfig
from nsa_serve.engine.client import AsyncEngine
from nsa_serve.engine.stand_in import OPTIONS_VARIABLE, expected_continuation
from nsa_serve.errors import ConfigError, EngineDeadError, ModelLoadError, NsaServeError
from nsa_serve.outputs import RequestOutput
from nsa_serve.params import SamplingParams
from tests.support.async_engine import cpu_seconds, process_exists, running_engine, until
from tests.support.model_folder import engine_config, write_sharp_folder

STAND_IN = EngineConfig(runner="stand-in")
SHORT = SamplingParams(max_tokens=8)
ENDLESS = SamplingParams(max_tokens=8000)

PARENT = """
import asyncio, sys
from nsa_serve.config import EngineConfig
from nsa_serve.engine.client import AsyncEngine
from nsa_serve.params import SamplingParams

async def main():
    engine = await AsyncEngine.start(EngineConfig(runner="stand-in"))
    print(engine.pid, flush=True)
    await engine.generate("busy", SamplingParams(max_tokens=8000), request_id="r")

asyncio.run(main())
"""


def _children() -> list[int]:
    """Engine processes of this one."""
    task = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(pid) for pid in task.read_text().split() if process_exists(int(pid))]


def test_kill_of_the_process_fails_streams_at_once_and_it_comes_back() -> None:
    with running_engine(step_seconds=0.002) as handle:
        engine = handle.engine

        async def consume(i: int) -> None:
            async for _ in engine.stream([i], ENDLESS, request_id=str(i)):
                pass

        async def scene() -> None:
            streams = [asyncio.create_task(consume(i)) for i in range(16)]
            await until(lambda: engine.stats.num_running == 16)
            pid = engine.pid
            os.kill(pid, signal.SIGKILL)
            killed = time.monotonic()
            results = await asyncio.gather(*streams, return_exceptions=True)
            assert time.monotonic() - killed < 2
            assert all(isinstance(result, EngineDeadError) for result in results)
            assert (engine.num_unfinished, engine.stats.num_running) == (0, 0)
            with pytest.raises(EngineDeadError):
                await engine.generate("too soon", SHORT, request_id="too soon")
            await until(lambda: engine.alive, seconds=10)
            assert engine.pid != pid
            assert not process_exists(pid)
            output = await engine.generate("again", SHORT, request_id="again")
            assert output.outputs[0].token_ids == expected_continuation(b"again", 8)

        handle.run(scene())


def test_an_engine_that_does_not_start_anew_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with running_engine() as handle:

        async def scene() -> None:
            monkeypatch.setenv(OPTIONS_VARIABLE, '{"load_error": "not yet"}')
            os.kill(handle.engine.pid, signal.SIGKILL)
            await until(lambda: "not yet" in caplog.text, seconds=10)
            assert not handle.engine.alive
            monkeypatch.delenv(OPTIONS_VARIABLE)
            await until(lambda: handle.engine.alive, seconds=10)

        handle.run(scene())


def test_shutdown_while_starting_anew_leaves_no_process() -> None:
    with running_engine() as handle:

        async def scene() -> None:
            os.kill(handle.engine.pid, signal.SIGKILL)
            await until(lambda: not handle.engine.alive)
            await asyncio.sleep(0.05)
            await handle.engine.shutdown()

        handle.run(scene())
        assert not _children()


@pytest.mark.parametrize("step_seconds", [0.001, 60.0])
def test_the_process_ends_with_its_parent(
    step_seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OPTIONS_VARIABLE, f'{{"step_seconds": {step_seconds}}}')
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert process_exists(pid)
        time.sleep(0.1)
        parent.kill()
    deadline = time.monotonic() + 2
    while process_exists(pid):
        assert time.monotonic() < deadline, "an orphan"
        time.sleep(0.01)


def test_an_idle_engine_burns_no_cpu() -> None:
    with running_engine() as handle:
        handle.run(handle.engine.generate("warm", SHORT, request_id="warm"))
        time.sleep(1.0)  # the check of the pool at rest is behind it
        before = cpu_seconds(handle.engine.pid)
        time.sleep(1.0)
        assert cpu_seconds(handle.engine.pid) - before <= 0.01


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_left_to_the_parent(number: signal.Signals) -> None:
    with running_engine() as handle:
        os.kill(handle.engine.pid, number)
        output = handle.run(handle.engine.generate("still", SHORT, request_id="still"))
        assert output.outputs[0].token_ids == expected_continuation(b"still", 8)


def test_shutdown_lets_requests_finish_within_its_time() -> None:
    with running_engine(step_seconds=0.005) as handle:
        engine = handle.engine

        async def scene() -> RequestOutput:
            params = SamplingParams(max_tokens=50)
            call = asyncio.create_task(engine.generate("last", params, request_id="last"))
            await until(lambda: engine.num_unfinished == 1)
            await engine.shutdown(timeout=5)
            with pytest.raises(EngineDeadError, match="shutting down"):
                await engine.generate("late", SHORT, request_id="late")
            return await call

        pid = engine.pid
        assert handle.run(scene()).outputs[0].finish_reason == "length"
        assert not process_exists(pid)


def test_shutdown_aborts_what_does_not_finish_in_time() -> None:
    with running_engine(step_seconds=0.005) as handle:
        engine = handle.engine

        async def scene() -> RequestOutput:
            call = asyncio.create_task(engine.generate("endless", ENDLESS, request_id="endless"))
            await until(lambda: engine.stats.num_running == 1)
            await engine.shutdown(timeout=0.1)
            return await call

        started = time.monotonic()
        assert handle.run(scene()).outputs[0].finish_reason == "abort"
        assert time.monotonic() - started < 2
        assert not process_exists(engine.pid)


def _error_of_start(config: EngineConfig) -> NsaServeError:
    with pytest.raises(NsaServeError) as caught:
        asyncio.run(AsyncEngine.start(config))
    return caught.value


def test_a_model_that_cannot_be_loaded_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPTIONS_VARIABLE, '{"load_error": "no\\n  memory"}')
    error = _error_of_start(STAND_IN)
    assert isinstance(error, ConfigError)
    assert str(error) == "RuntimeError: no memory"


def test_a_damaged_model_is_said_to_be_one(tmp_path: Path) -> None:
    folder, _ = write_sharp_folder(tmp_path)
    (folder / "model.safetensors").write_bytes(b"nothing")
    assert isinstance(_error_of_start(engine_config(folder)), ModelLoadError)


def test_a_process_that_dies_while_it_starts_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    assert isinstance(_error_of_start(STAND_IN), EngineDeadError)


@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.3])
def test_a_start_that_is_called_off_ends_quietly(
    seconds: float, capfd: pytest.CaptureFixture[str]
) -> None:
    async def scene() -> None:
        start = asyncio.create_task(AsyncEngine.start(STAND_IN))
        await asyncio.sleep(seconds)
        start.cancel()
        with pytest.raises(asyncio.CancelledError):
            await start

    asyncio.run(scene())
    assert not _children()
    assert capfd.readouterr().err == ""


def test_a_client_imports_no_torch() -> None:
    script = PARENT.replace("8000", "8").replace("asyncio.run(main())", "")
    script += "asyncio.run(main())\nassert 'torch' not in sys.modules\n"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
