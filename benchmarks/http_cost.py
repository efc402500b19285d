"""What HTTP costs: CPU time of the API process for each token that it streams.

    .venv/bin/python benchmarks/http_cost.py

64 streams over the stand-in runner, whose steps take a fixed time, so that every token is an event
of its own; the CPU time of the API process, all threads, is read from the kernel while all streams
run. `--pause` then stops the API process for a while and compares how long the engine took for its
tokens with how long it takes otherwise: the engine must not wait for HTTP. Medians of several
rounds. Writes benchmarks/results/http_cost.json.
"""

import argparse
import asyncio
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nsa_serve.engine.stand_in import OPTIONS_VARIABLE

RESULTS = Path(__file__).parent / "results" / "http_cost.json"
NUM_STREAMS = 64
STEP_SECONDS = 0.012
LIMIT_US = 60.0


@dataclass(frozen=True)
class Server:
    """A server over the stand-in, whose tokens are ASCII, so that each is a text."""

    pid: int
    port: int

    def cpu_seconds(self) -> float:
        """CPU time of all threads of the API process so far."""
        tasks = Path(f"/proc/{self.pid}/task").glob("*/schedstat")
        return sum(int(task.read_text().split()[0]) for task in tasks) / 1e9

    def engine_seconds(self) -> float:
        """Time from the first to the last token, by the engine's clock, summed over requests."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
            text = answer.read().decode()
        match = re.search(r"request_decode_time_seconds_sum\S* (\S+)", text)
        assert match
        return float(match[1])


def main() -> int:
    """The exit status: 1 if a token costs more than the limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=400, help="of each stream")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pause", type=float, default=2.0, help="seconds; 0 leaves it out")
    options = parser.parse_args()
    with serve() as server:
        asyncio.run(run_round(server, 50))
        rounds = [asyncio.run(run_round(server, options.tokens)) for _ in range(options.rounds)]
        paused = asyncio.run(run_round(server, options.tokens, options.pause))
    result = {
        "machine": {"cpu": cpu_name(), "cpus": os.cpu_count(), "python": platform.python_version()},
        "streams": NUM_STREAMS,
        "tokens": options.tokens,
        "cpu_us_per_token": statistics.median(r["cpu_us_per_token"] for r in rounds),
        "tokens_per_event": statistics.median(r["tokens_per_event"] for r in rounds),
        "engine_ms_per_token": statistics.median(r["engine_ms_per_token"] for r in rounds),
        "pause_seconds": options.pause,
        "engine_ms_per_token_paused": paused["engine_ms_per_token"],
        "rounds": rounds,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "rounds"}, indent=1))
    return int(result["cpu_us_per_token"] > LIMIT_US)


@contextmanager
def serve() -> Iterator[Server]:
    """A server of our own until we leave."""
    options = {"vocab_size": 128, "eos_token_ids": [], "step_seconds": STEP_SECONDS}
    command = [str(Path(sys.executable).with_name("nsa-serve")), "serve", "--runner", "stand-in"]
    environment = {**os.environ, OPTIONS_VARIABLE: json.dumps(options)}
    command += ["--port", "0", "--max-num-seqs", str(NUM_STREAMS)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        try:
            assert process.stdout is not None
            found = (re.search(r"ready at http://\S+:(\d+)", line) for line in process.stdout)
            match = next(filter(None, found), None)
            if match is None:
                raise SystemExit("the server did not start")
            yield Server(process.pid, int(match[1]))
        finally:
            process.terminate()


async def run_round(server: Server, num_tokens: int, pause: float = 0.0) -> dict[str, float]:
    """All streams once. CPU time and events are those while every stream runs."""
    streams = [Stream(i, num_tokens) for i in range(NUM_STREAMS)]
    loop = asyncio.get_running_loop()
    engine_before = server.engine_seconds()
    for stream in streams:
        await loop.create_connection(lambda s=stream: s, "127.0.0.1", server.port)  # type: ignore[misc]
    while any(stream.num_events < num_tokens * 0.1 for stream in streams):
        await asyncio.sleep(0.005)
    cpu, events = server.cpu_seconds(), sum(stream.num_events for stream in streams)
    begun = time.perf_counter()
    if pause:
        os.kill(server.pid, signal.SIGSTOP)
        await asyncio.sleep(pause)
        os.kill(server.pid, signal.SIGCONT)
    while all(stream.num_events < num_tokens * 0.9 and not stream.ended for stream in streams):
        await asyncio.sleep(0.005)
    cpu = server.cpu_seconds() - cpu
    events = sum(stream.num_events for stream in streams) - events
    seconds = time.perf_counter() - begun
    while not all(stream.ended for stream in streams):
        await asyncio.sleep(0.005)
    all_tokens = NUM_STREAMS * num_tokens
    return {
        "cpu_us_per_token": cpu / events * 1e6,
        "tokens_per_event": all_tokens / sum(stream.num_events for stream in streams),
        "tokens_per_second": events / seconds,
        "engine_ms_per_token": (server.engine_seconds() - engine_before) / all_tokens * 1e3,
    }


class Stream(asyncio.Protocol):
    """Asks for a stream and counts its events, as cheaply as it goes."""

    def __init__(self, number: int, num_tokens: int) -> None:
        body = {
            "model": "stand-in",
            "prompt": f"Stream {number}, round {time.time()}",
            "max_tokens": num_tokens,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        self._body = json.dumps(body).encode()
        self.num_events = 0
        self.ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        assert isinstance(transport, asyncio.WriteTransport)
        head = (
            "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(self._body)}\r\n\r\n"
        )
        transport.write(head.encode() + self._body)

    def data_received(self, data: bytes) -> None:
        """Every event of a token has one of these."""
        self.num_events += data.count(b'"text":')

    def connection_lost(self, exc: Exception | None) -> None:
        """The answer is complete."""
        self.ended = True


def cpu_name() -> str:
    """As the kernel names it."""
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


if __name__ == "__main__":
    sys.exit(main())
