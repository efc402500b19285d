"""A batch beside the engine's own throughput: the same requests by each way, in turn.

    .venv/bin/python benchmarks/batch.py

The ways are `bench throughput`'s loop (the engine in this process, token ids in and out), the
command `run-batch`, and the Batch API of a server that does nothing else. Over the stand-in runner,
whose steps take a fixed time, and over the built-in model. Each way runs in a process of its own;
loading is left out, and so is what the engine computes to warm up. Every other round goes through
the ways backwards, as a machine may be slower for minutes. Medians of the rounds, and of the time
for which the engine waited for a core that other processes had.
Writes benchmarks/results/batch.json.
"""

import argparse
import json
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import openai

from nsa_serve.bench.engine import EngineBench
from nsa_serve.config import EngineConfig
from nsa_serve.engine.stand_in import OPTIONS_VARIABLE

RESULTS = Path(__file__).parent / "results" / "batch.json"
COMMAND = str(Path(sys.executable).with_name("nsa-serve"))
NUM_THREADS = 1
"""Of the model, so that the engine has a core to itself on any machine with two."""
URL: Literal["/v1/completions"] = "/v1/completions"


@dataclass(frozen=True)
class Case:
    """Requests, and what they are given to."""

    runner: Literal["model", "stand-in"]
    model_name: str
    vocab_size: int
    requests: int
    prompt_tokens: int
    answer_tokens: int
    at_once: int
    rounds: int
    step_ms: float = 0.0

    @property
    def flags(self) -> list[str]:
        """Of a command with an engine."""
        flags = ["--runner", self.runner, "--max-num-seqs", str(self.at_once)]
        return [*flags, "--num-threads", str(NUM_THREADS)]

    @property
    def environment(self) -> dict[str, str]:
        """Of a process with this runner."""
        return {**os.environ, OPTIONS_VARIABLE: json.dumps({"step_seconds": self.step_ms / 1e3})}

    def prompts(self) -> list[list[int]]:
        """The same at every call."""
        generator = random.Random(0)
        return [
            generator.choices(range(3, self.vocab_size), k=self.prompt_tokens)
            for _ in range(self.requests)
        ]

    def write(self, path: Path) -> None:
        """The requests as a batch's input."""
        body = {
            "model": self.model_name,
            "max_tokens": self.answer_tokens,
            "temperature": 0,
            "ignore_eos": True,
        }
        with path.open("w") as file:
            for number, prompt in enumerate(self.prompts()):
                request = {"custom_id": str(number), "method": "POST", "url": URL}
                print(json.dumps({**request, "body": {**body, "prompt": prompt}}), file=file)


CASES = {
    "stand-in, a step takes 2.5 ms": Case("stand-in", "stand-in", 256, 2000, 64, 64, 64, 5, 2.5),
    "built-in model": Case("model", "SmolLM2-135M-Instruct-NSA", 49_152, 96, 32, 32, 8, 11),
}


@dataclass(frozen=True)
class Run:
    """What one way gave."""

    tokens_per_second: float
    waited: float
    """Share of the time for which the engine's loop could have run, but had no core."""

    @property
    def undisturbed(self) -> float:
        """Tokens per second, had it never waited for a core."""
        return self.tokens_per_second / (1.0 - self.waited)


def main() -> None:
    """Measure every way, or, as a child, the engine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", metavar="CASE", help="the engine's own throughput")
    parser.add_argument("--only", choices=CASES, help="one case; nothing is written")
    parser.add_argument("--rounds", type=int, help="in place of each case's own number")
    options = parser.parse_args()
    if options.engine:
        print(json.dumps(asdict(engine(CASES[options.engine]))))
        return
    names = [options.only] if options.only else list(CASES)
    rounds: dict[str, list[dict[str, Run]]] = {name: [] for name in names}
    for name in names:
        for number in range(options.rounds or CASES[name].rounds):
            rounds[name].append(measure(name, backwards=number % 2 == 1))
            print(f"round {number + 1}, {name}: {rounds[name][-1]}", file=sys.stderr)
    result = {
        "machine": {"cpu": cpu_name(), "cpus": os.cpu_count(), "python": platform.python_version()},
        "date": time.strftime("%Y-%m-%d"),
        "cases": {name: {**asdict(CASES[name]), **summary(rounds[name])} for name in names},
    }
    if not options.only:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    for name in names:
        show(name, summary(rounds[name]))


def summary(rounds: list[dict[str, Run]]) -> dict[str, Any]:
    """Medians over the rounds; ratios are to the engine in the same round."""
    median: dict[str, dict[str, float]] = {}
    for way in rounds[0]:
        values = {
            "tokens_per_second": [r[way].tokens_per_second for r in rounds],
            "waited": [r[way].waited for r in rounds],
            "of_the_engine": [
                r[way].tokens_per_second / r["engine"].tokens_per_second for r in rounds
            ],
            "of_the_engine_undisturbed": [
                r[way].undisturbed / r["engine"].undisturbed for r in rounds
            ],
        }
        median[way] = {name: statistics.median(each) for name, each in values.items()}
    return {
        "medians": median,
        "rounds": [{way: asdict(run) for way, run in r.items()} for r in rounds],
    }


def show(name: str, result: dict[str, Any]) -> None:
    """A table on standard output."""
    columns = ("tokens_per_second", "of_the_engine", "waited", "of_the_engine_undisturbed")
    print(f"\n{name:32}" + "".join(f"{column:>26}" for column in columns))
    for way, medians in result["medians"].items():
        print(f"{way:32}" + "".join(f"{medians[column]:26,.3f}" for column in columns))


def measure(name: str, *, backwards: bool) -> dict[str, Run]:
    """Each way once."""
    case = CASES[name]
    with tempfile.TemporaryDirectory() as folder:
        case.write(Path(folder) / "requests.jsonl")
        ways = {
            "engine": partial(engine_alone, name),
            "run-batch": partial(offline, case, Path(folder)),
            "Batch API": partial(online, case, Path(folder)),
        }
        found = {way: ways[way]() for way in (reversed(ways) if backwards else ways)}
    return {way: found[way] for way in ways}


def engine_alone(name: str) -> Run:
    """The engine's own throughput, by a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--engine", name],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env=CASES[name].environment,
    )
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def engine(case: Case) -> Run:
    """The loop of `bench throughput`."""
    config = EngineConfig(runner=case.runner, max_num_seqs=case.at_once, num_threads=NUM_THREADS)
    bench = EngineBench(config)
    prompts, waits = case.prompts(), Waits(os.getpid())
    done = bench.throughput_of(prompts, [case.answer_tokens] * case.requests)
    return Run(done.output_tokens / done.seconds, waits.share())


def offline(case: Case, folder: Path) -> Run:
    """The command, by its own clock, which starts when the model is loaded."""
    answers = folder / "answers.jsonl"
    files = ["-i", str(folder / "requests.jsonl"), "-o", str(answers)]
    command = [COMMAND, "run-batch", *files, *case.flags]
    waits, share = None, 0.0
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=case.environment
    ) as process:
        while process.poll() is None:
            time.sleep(0.02)
            if waits is None and answers.exists() and answers.stat().st_size:
                waits = Waits(engine_of(process.pid))
            with suppress(OSError):
                share = share if waits is None else waits.share()
        assert process.stderr is not None
        said = process.stderr.read()
    match = re.search(r"^([\d,]+) answered, 0 failed.*\(([\d,.]+) tokens/s\)", said)
    if match is None or int(match[1].replace(",", "")) != case.requests:
        raise SystemExit(f"run-batch did not answer everything: {said}")
    return Run(float(match[2].replace(",", "")), share)


def online(case: Case, folder: Path) -> Run:
    """The Batch API, from the call that makes a batch until it is seen to be completed."""
    with serve(case, folder) as (pid, port):
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none")
        file = client.files.create(file=folder / "requests.jsonl", purpose="batch")
        waits, started = Waits(engine_of(pid)), time.perf_counter()
        batch = client.batches.create(input_file_id=file.id, endpoint=URL, completion_window="24h")
        while batch.status in ("validating", "in_progress", "finalizing"):
            time.sleep(0.1)
            batch = client.batches.retrieve(batch.id)
        seconds, share = time.perf_counter() - started, waits.share()
    counts = batch.request_counts
    if counts is None or counts.completed != case.requests:
        raise SystemExit(f"the Batch API did not answer everything: {batch}")
    return Run(case.requests * case.answer_tokens / seconds, share)


class Waits:
    """How long the main thread of a process waits for a core, as the kernel counts it."""

    def __init__(self, pid: int) -> None:
        self._counts = Path(f"/proc/{pid}/schedstat")
        self._began, self._before = time.perf_counter(), self._waited()

    def share(self) -> float:
        """Of the time since this was made; an OSError once the process is gone."""
        return (self._waited() - self._before) / (time.perf_counter() - self._began)

    def _waited(self) -> float:
        return int(self._counts.read_text().split()[1]) / 1e9


def engine_of(pid: int) -> int:
    """The process id of the engine that a command has started."""
    (child,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


@contextmanager
def serve(case: Case, folder: Path) -> Iterator[tuple[int, int]]:
    """A server of our own until we leave; its process id and its port."""
    command = [COMMAND, "serve", *case.flags, "--port", "0", "--batch-dir", str(folder / "batches")]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=case.environment,
    ) as process:
        try:
            assert process.stdout is not None
            found = (re.search(r"ready at http://\S+:(\d+)", line) for line in process.stdout)
            match = next(filter(None, found), None)
            if match is None:
                raise SystemExit("the server did not start")
            yield process.pid, int(match[1])
        finally:
            process.terminate()


def cpu_name() -> str:
    """As the kernel names it."""
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


if __name__ == "__main__":
    main()
