"""EleutherAI's lm-evaluation-harness, as it comes, against this server.

    .venv/bin/python -m benchmarks.harness [MODEL]

It asks which of four cities is the capital of each of ten countries, as log-likelihoods of prompts
(`echo` with `logprobs`), with the server's tokenizer. Every log-likelihood is then compared with
what `LLM.score` says of the same tokens without a server. Writes benchmarks/results/harness.json;
exits with 1 if they differ by more than 1e-4, or one is missing.
"""

import argparse
import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.clients import FOLDER, install, model_of, run
from benchmarks.servers import serve
from nsa_serve import LLM

RESULTS = Path(__file__).parent / "results" / "harness.json"
VERSION = "0.4.13"
TASK = "capitals"
PROMPT = "The capital of {{country}} is"
CAPITALS = {
    "China": "Beijing",
    "Egypt": "Cairo",
    "England": "London",
    "France": "Paris",
    "Germany": "Berlin",
    "Greece": "Athens",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Russia": "Moscow",
    "Spain": "Madrid",
}
MOST = 1e-4
"""Nats by which a log-likelihood may differ."""


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", help="a model folder; the built-in model unless given")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    options = parser.parse_args()
    install(options.folder, "lm_eval", f"lm_eval[api]=={VERSION}", "transformers")
    model = [options.model] if options.model else []
    with tempfile.TemporaryDirectory() as scratch, serve(model) as url:
        name = model_of(url)
        questions = run_harness(options.folder, url, Path(scratch))
    found = [float(log_likelihood) for q in questions for ((log_likelihood, _),) in q["resps"]]
    expected = log_likelihoods(LLM(*model), questions)
    largest = max(abs(a - b) for a, b in zip(found, expected, strict=True))
    kept = {
        "machine": {"cpu": platform.machine(), "python": platform.python_version()},
        "version": VERSION,
        "model": name,
        "questions": len(questions),
        "answered_rightly": sum(q["acc"] for q in questions),
        "log_likelihoods": len(found),
        "largest_difference": largest,
    }
    print(json.dumps(kept, indent=1))
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
    return int(largest > MOST or len(questions) != len(CAPITALS))


def write_task(folder: Path) -> None:
    """The task as the harness reads it: its rules, and a line for each question."""
    cities = list(CAPITALS.values())
    with (folder / "questions.jsonl").open("w") as lines:
        for i, (country, city) in enumerate(CAPITALS.items()):
            label = i % 4
            choices = [cities[(i - label + k) % len(cities)] for k in range(4)]
            assert choices[label] == city
            question = {"country": country, "choices": choices, "label": label}
            lines.write(json.dumps(question) + "\n")
    rules = {
        "task": TASK,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": PROMPT,
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc"}],
    }
    (folder / f"{TASK}.yaml").write_text(json.dumps(rules))  # JSON is YAML


def run_harness(folder: Path, url: str, scratch: Path) -> list[dict[str, Any]]:
    """One record for each question."""
    write_task(scratch)
    arguments = {
        "model": model_of(url),
        "base_url": f"{url}/v1/completions",
        "num_concurrent": 4,
        "max_retries": 1,
    }
    run(
        [str(folder / "lm_eval/bin/lm_eval"), "run", "--log_samples"],
        {
            "--model": "local-completions",
            "--model_args": ",".join(f"{name}={value}" for name, value in arguments.items()),
            "--tasks": TASK,
            "--include_path": str(scratch),
            "--output_path": str(scratch / "out"),
        },
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
        OPENAI_API_KEY="none",
    )
    (samples,) = scratch.glob(f"out/*/samples_{TASK}_*.jsonl")
    return [json.loads(line) for line in samples.read_text().splitlines()]


def log_likelihoods(llm: LLM, questions: list[dict[str, Any]]) -> list[float]:
    """Of each choice behind its prompt, without a server, in the harness's order."""
    result = []
    for question in questions:
        for asked in question["arguments"].values():
            prompt = llm.tokenizer.encode_plain(asked["arg_0"])
            whole = llm.tokenizer.encode_plain(asked["arg_0"] + asked["arg_1"])
            assert whole[: len(prompt)] == prompt
            result.append(sum(llm.score(whole)[len(prompt) - 1 :]))
    return result


if __name__ == "__main__":
    sys.exit(main())
