"""guidellm and aiperf, as they come, against this server: did every request succeed?

    .venv/bin/python -m benchmarks.clients [--url http://…] [-- flags of `nsa-serve serve`]

Each gets a virtual environment of its own in --folder, made at the first run (gigabytes: guidellm
brings torch and transformers). Without --url a server is started with the flags behind `--`, the
built-in model unless they say otherwise. Every tool loads chats and completions, streamed, with
synthetic prompts. Exits with 1 if a request failed or is missing. Writes
benchmarks/results/clients.json, one entry for each model.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.servers import serve
from nsa_serve.config import EngineConfig
from nsa_serve.engine.load import load_tokenizer_json

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "clients.json"
FOLDER = Path.home() / ".cache/nsa-serve/clients"
VERSIONS = {"guidellm": "0.8.1", "aiperf": "0.13.0"}
ENDPOINTS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
COLUMNS = ("client", "endpoint", "succeeded", "failed", "ttft_ms", "itl_ms", "output_tokens_per_s")


@dataclass(frozen=True)
class Load:
    """What each tool sends."""

    url: str
    model: str
    tokenizer: Path
    requests: int
    concurrency: int
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Outcome:
    """What a tool says of its run; medians, and means where it has no median."""

    client: str
    endpoint: str
    succeeded: int
    failed: int
    ttft_ms: float
    itl_ms: float
    output_tokens_per_s: float


def main() -> int:
    """The exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", help="a server that runs; otherwise one is started")
    parser.add_argument("--folder", type=Path, default=FOLDER)
    parser.add_argument("--tokenizer", type=Path, help="folder of the model's; needed with --url")
    parser.add_argument("--requests", type=int, default=40)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--input-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("serve", nargs="*", help="flags of `nsa-serve serve`, behind --")
    options = parser.parse_args()
    if options.url and not options.tokenizer:
        parser.error("--url needs --tokenizer")
    for name, version in VERSIONS.items():
        install(options.folder, name, f"{name}=={version}", with_torch=name == "guidellm")
    outcomes = []
    server = nullcontext(options.url) if options.url else serve(options.serve)
    with tempfile.TemporaryDirectory() as scratch, server as url:
        load = Load(
            url,
            model_of(url),
            options.tokenizer or write_tokenizer(Path(scratch), options.serve),
            options.requests,
            options.concurrency,
            options.input_tokens,
            options.output_tokens,
        )
        for endpoint in ENDPOINTS:
            outcomes.append(run_guidellm(options.folder, load, endpoint, Path(scratch)))
            outcomes.append(run_aiperf(options.folder, load, endpoint, Path(scratch)))
    keep(load, outcomes)
    return int(any(o.failed or o.succeeded != load.requests for o in outcomes))


def install(folder: Path, name: str, *requirements: str, with_torch: bool = False) -> None:
    """Make the environment of one tool, unless it is there."""
    done = folder / name / " ".join(requirements)
    if done.exists():
        return
    print(f"installing {' '.join(requirements)} in {folder / name}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder / name)], check=True)
    python = str(folder / name / "bin" / "python")
    if with_torch:
        subprocess.run([python, str(ROOT / "scripts" / "install_torch.py")], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *requirements], check=True)
    done.touch()


def model_of(url: str) -> str:
    """The name under which the server serves its model."""
    with urllib.request.urlopen(f"{url}/v1/models") as answer:
        name: str = json.load(answer)["data"][0]["id"]
    return name


def write_tokenizer(folder: Path, flags: list[str]) -> Path:
    """The tokenizer of the server's model, as transformers loads it."""
    config = EngineConfig(runner="stand-in") if "stand-in" in flags else EngineConfig()
    text = load_tokenizer_json(config)
    assert text is not None
    (folder / "tokenizer.json").write_text(text)
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))
    return folder


def run_guidellm(folder: Path, load: Load, endpoint: str, scratch: Path) -> Outcome:
    """One run, read from its JSON report."""
    report = scratch / f"guidellm-{endpoint}.json"
    backend = {"kind": "openai_http", "target": load.url, "request_format": ENDPOINTS[endpoint]}
    data = {
        "kind": "synthetic_text",
        "prompt_tokens": load.input_tokens,
        "output_tokens": load.output_tokens,
    }
    tokenizer = {"kind": "huggingface_auto", "model": str(load.tokenizer)}
    run(
        [str(folder / "guidellm/bin/guidellm"), "run", "--disable-console-interactive"],
        {
            "--backend": json.dumps(backend),
            "--tokenizer": json.dumps(tokenizer),
            "--data": json.dumps(data),
            "--profile": f"kind=concurrent,streams={load.concurrency}",
            "--constraint": f"kind=max_requests,count={load.requests}",
            "--output": f"kind=json,path={report}",
        },
        HF_HUB_OFFLINE="1",
    )
    metrics = json.loads(report.read_text())["benchmarks"][0]["metrics"]
    totals = metrics["request_totals"]
    return Outcome(
        client="guidellm",
        endpoint=endpoint,
        succeeded=totals["successful"],
        failed=totals["errored"] + totals["incomplete"],
        ttft_ms=metrics["time_to_first_token_ms"]["successful"]["median"],
        itl_ms=metrics["inter_token_latency_ms"]["successful"]["median"],
        output_tokens_per_s=metrics["output_tokens_per_second"]["successful"]["mean"],
    )


def run_aiperf(folder: Path, load: Load, endpoint: str, scratch: Path) -> Outcome:
    """One run, read from its JSON report."""
    artifacts = scratch / f"aiperf-{endpoint}"
    run(
        [str(folder / "aiperf/bin/aiperf"), "profile", "--streaming", "--use-server-token-count"],
        {
            "--model": load.model,
            "--tokenizer": str(load.tokenizer),
            "--url": load.url,
            "--endpoint-type": endpoint,
            "--concurrency": str(load.concurrency),
            "--request-count": str(load.requests),
            "--isl": str(load.input_tokens),
            "--osl": str(load.output_tokens),
            "--extra-inputs": "ignore_eos:true",
            "--ui": "none",
            "--artifact-dir": str(artifacts),
        },
    )
    report = json.loads((artifacts / "profile_export_aiperf.json").read_text())
    failed = sum(error["count"] for error in report["error_summary"] or [])
    return Outcome(
        client="aiperf",
        endpoint=endpoint,
        succeeded=int(report["request_count"]["avg"]),
        failed=failed,
        ttft_ms=report["time_to_first_token"]["p50"],
        itl_ms=report["inter_token_latency"]["p50"],
        output_tokens_per_s=report["output_token_throughput"]["avg"],
    )


def run(command: list[str], flags: dict[str, str], **environment: str) -> None:
    """Run a tool; what it prints is shown if it fails."""
    command += [part for flag in flags.items() for part in flag]
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{done.stdout}\n{command[0]} ended with {done.returncode}")


def keep(load: Load, outcomes: list[Outcome]) -> None:
    """Print and write what the tools said."""
    print("".join(f"{name:>20}" for name in COLUMNS))
    rows: list[dict[str, Any]] = [asdict(outcome) for outcome in outcomes]
    for row in rows:
        cells = (row[name] for name in COLUMNS)
        print("".join(f"{c:20.1f}" if isinstance(c, float) else f"{c:>20}" for c in cells))
    shape = {key: value for key, value in asdict(load).items() if key not in ("url", "tokenizer")}
    machine = {
        "cpus": os.cpu_count(),
        "cpu": platform.machine(),
        "python": platform.python_version(),
    }
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    kept[load.model] = {"machine": machine, "versions": VERSIONS, "load": shape, "outcomes": rows}
    RESULTS.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
