"""The built-in model on this CPU: nsa-serve beside transformers' `generate`, same weights.

    make bench-cpu

Each side runs in a process of its own, in turn, for several rounds; medians are compared. `--add`
adds rounds to those in the file, for a machine that is quiet only for a while. Decode is what the
tokens after the first take, prefill what the first token takes. Prompts are random tokens,
different each time. Writes benchmarks/results/cpu.json.
"""

import argparse
import json
import os
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "cpu.json"
OURS = ("nsa-serve", "int8"), ("nsa-serve", "bfloat16")
THEIRS = ("transformers", "bfloat16"), ("transformers", "float32")
DECODE_PROMPT, DECODE_TOKENS = 32, 96
BATCHES = 1, 8
PREFILLS = 512, 1000
VOCABULARY = 49_152

Prompts = list[list[int]]
Generate = Callable[[Prompts, int], Any]
"""Continue prompts greedily by exactly so many tokens."""


def main() -> None:
    """Measure both sides, or, as a child, one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", nargs=2, metavar=("ENGINE", "DTYPE"), help="measure one side")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--add", action="store_true", help="to the rounds measured before")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(*options.side)))
        return
    runs: dict[str, list[dict[str, float]]] = {}
    if options.add:
        runs = json.loads(RESULTS.read_text())["runs"]
    for number in range(options.rounds):
        for engine, dtype in (*OURS, *THEIRS):
            print(f"round {number + 1}/{options.rounds}: {engine} {dtype}", file=sys.stderr)
            runs.setdefault(f"{engine} {dtype}", []).append(child(engine, dtype))
        medians = keep(runs)
    show(medians, ratios(medians))


def keep(runs: dict[str, list[dict[str, float]]]) -> dict[str, dict[str, float]]:
    """Write what was measured so far; returns the medians."""
    medians = {
        side: {key: statistics.median(run[key] for run in of) for key in of[0]}
        for side, of in runs.items()
    }
    result = {"machine": machine(), "medians": medians, "ratios": ratios(medians), "runs": runs}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    return medians


def child(engine: str, dtype: str) -> dict[str, float]:
    """One side in a fresh process."""
    command = [sys.executable, __file__, "--side", engine, dtype]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(engine: str, dtype: str) -> dict[str, float]:
    """Tokens per second, seconds to load and peak memory of one side."""
    started = time.perf_counter()
    generate = {"nsa-serve": load_ours, "transformers": load_transformers}[engine](dtype)
    result = {"load_seconds": time.perf_counter() - started}
    generate(prompts(1, DECODE_PROMPT), 4)
    for batch in BATCHES:
        first = timed(generate, prompts(batch, DECODE_PROMPT), 1)
        whole = timed(generate, prompts(batch, DECODE_PROMPT), DECODE_TOKENS)
        result[f"decode_batch_{batch}"] = batch * (DECODE_TOKENS - 1) / (whole - first)
    for length in PREFILLS:
        generate(prompts(1, length), 1)
        seconds = [timed(generate, prompts(1, length), 1) for _ in range(3)]
        result[f"prefill_{length}"] = length / statistics.median(seconds)
    result["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return result


def timed(generate: Generate, prompts: Prompts, num_tokens: int) -> float:
    """Seconds."""
    started = time.perf_counter()
    generate(prompts, num_tokens)
    return time.perf_counter() - started


def prompts(count: int, length: int) -> Prompts:
    """Random tokens."""
    return [[random.randrange(3, VOCABULARY) for _ in range(length)] for _ in range(count)]


def load_ours(dtype: str) -> Generate:
    """The built-in model in nsa-serve."""
    from nsa_serve import LLM, SamplingParams

    llm = LLM(dtype=dtype)

    def generate(prompts: Prompts, num_tokens: int) -> Any:
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
        return llm.generate(prompts, params, use_tqdm=False)

    return generate


def load_transformers(dtype: str) -> Generate:
    """The same weights as a dense Llama in transformers."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from nsa_serve.model.loading.folder import resolve_model
    from nsa_serve.model.loading.weights import load_decoder

    folder = resolve_model(None)
    config = folder.config
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            max_position_embeddings=config.max_position_embeddings,
            rms_norm_eps=config.rms_norm_eps,
            rope_theta=config.rope_theta,
            tie_word_embeddings=config.tie_word_embeddings,
        )
    )
    state = load_decoder(folder, attention="dense").state_dict()
    missing = model.load_state_dict(state, strict=False)
    assert missing.missing_keys == ["lm_head.weight"]
    assert not missing.unexpected_keys
    model = model.to(getattr(torch, dtype)).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    def generate(prompts: Prompts, num_tokens: int) -> Any:
        ids = torch.tensor(prompts)
        with torch.inference_mode():
            return model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=False,
            )

    return generate


def ratios(medians: dict[str, dict[str, float]]) -> dict[str, float]:
    """Our default over transformers at the type that is best for it, figure by figure."""
    ours = medians["nsa-serve int8"]
    best = [medians[" ".join(side)] for side in THEIRS]
    keys = [key for key in ours if key.startswith(("decode", "prefill"))]
    return {key: ours[key] / max(side[key] for side in best) for key in keys}


def machine() -> dict[str, Any]:
    """What was measured on."""
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": version("torch"),
        "transformers": version("transformers"),
        "nsa_serve": version("nsa-serve"),
        "commit": subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], stdout=subprocess.PIPE, text=True
        ).stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }


def cpu_name() -> str:
    """Model and what matters of its instruction sets."""
    text = Path("/proc/cpuinfo").read_text()
    fields = dict(line.split(":", 1) for line in text.splitlines() if ":" in line)
    by_name = {key.strip(): value.strip() for key, value in fields.items()}
    flags = by_name.get("flags", "").split()
    extra = [flag for flag in ("avx2", "avx512_vnni", "avx512_bf16", "amx_int8") if flag in flags]
    return " ".join([by_name.get("model name", platform.machine()), *extra])


def show(medians: dict[str, dict[str, float]], ratios: dict[str, float]) -> None:
    """A table on standard output."""
    keys = list(next(iter(medians.values())))
    print(f"{'':22}" + "".join(f"{key:>16}" for key in keys))
    for side, values in medians.items():
        print(f"{side:22}" + "".join(f"{values[key]:16.1f}" for key in keys))
    print(f"{'ratio':22}" + "".join(f"{ratios.get(key, float('nan')):16.2f}" for key in keys))


if __name__ == "__main__":
    main()
