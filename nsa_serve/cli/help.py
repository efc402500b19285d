"""How `--help` looks: a word for what each flag takes, and examples at its end."""

from typing import Any

from typer.core import TyperCommand

WORDS = {
    "ADDRESS": "host",
    "BOUND": "goodput",
    "DEVICE": "device",
    "FIELD=VALUE": "fields",
    "FILE": "config_file data dataset_path fa3_library needle_haystack output report requests",
    "FOLDER": "batch_dir folder tokenizer",
    "GIB": "cpu_cache_gib memory",
    "HEADS": "heads",
    "HOST": "allowed_host",
    "JSON": "extra_body",
    "KEY": "api_key",
    "MODEL": "model",
    "N": "batch batch_size epochs max_concurrency max_num_queued_reqs max_num_seqs "
    "needle_distractors needle_repeat num_prompts num_threads num_warmups "
    "random_num_prefixes repeat seed top_k vocab_size",
    "NAME": "preset served_model_name",
    "NAME=VALUE": "header",
    "PAGES": "num_pages",
    "PERCENTS": "needle_depths",
    "PORT": "port",
    "PROMPT": "prompt",
    "RATE": "learning_rate ramp_up_end_rps ramp_up_start_rps request_rate",
    "RATIO": "random_range_ratio vary",
    "SECONDS": "max_seconds request_timeout shutdown_timeout stuck_timeout timeout",
    "SHAPE": "burstiness",
    "SHARE": "dropout gpu_memory_utilization top_p",
    "STEPS": "checkpoint_every evaluate_every log_every steps warmup",
    "T": "temperature",
    "TEXT": "stop",
    "TOKENS": "block_size context input_len max_batch_tokens max_model_len "
    "max_num_batched_tokens max_tokens needle_lengths output_len random_input_len "
    "random_output_len random_prefix_len sequence_length",
    "URL": "base_url otlp_traces_endpoint",
    "WHAT:VALUES": "sweep",
    "X": "grad_clip weight_decay",
}
"""What a flag takes, and the parameters that take it."""

EXAMPLES = {
    "serve": """
        nsa-serve serve
        nsa-serve serve path/to/model --port 8080 --api-key SECRET
        nsa-serve serve --max-num-seqs 8 --cpu-cache-gib 1
    """,
    "generate": """
        nsa-serve generate "What is the capital of France?" --temperature 0
        nsa-serve generate --raw --max-tokens 32 < prompt.txt
    """,
    "chat": """
        nsa-serve chat
        nsa-serve chat path/to/model --temperature 0.7 --max-tokens 200
    """,
    "plan": """
        nsa-serve plan
        nsa-serve plan path/to/config.json --memory 24 --dtype int8
        nsa-serve plan --preset paper
    """,
    "run-batch": """
        nsa-serve run-batch -i requests.jsonl -o answers.jsonl
        nsa-serve run-batch -i requests.jsonl -o answers.jsonl --resume
    """,
    "train": """
        nsa-serve train digits
        nsa-serve train whale --data moby_dick.txt --preset xunhao --small
        nsa-serve train whale --resume
    """,
    "doctor": """
        nsa-serve doctor
    """,
    "convert": """
        nsa-serve convert path/to/checkpoint path/to/new
        nsa-serve convert llama.gguf path/to/new
    """,
    "bench serve": """
        nsa-serve bench serve --request-rate 4 --goodput ttft:500 tpot:50
        nsa-serve bench serve --sweep rate:1,2,4,8 --report report.html
        nsa-serve bench serve --dataset needle --endpoint chat
    """,
    "bench kernels": """
        nsa-serve bench kernels --heads all --output kernels.json
        nsa-serve bench kernels --device cpu
    """,
    "bench latency": """
        nsa-serve bench latency --batch-size 1 --batch-size 8
        nsa-serve bench latency random:1b --input-len 8192 --attention dense
    """,
    "bench throughput": """
        nsa-serve bench throughput --num-prompts 32 --output-len 64
    """,
}
"""Command lines that work, for each command."""


class HelpfulCommand(TyperCommand):
    """A command whose flags say what they take, and whose help ends with examples."""

    def __init__(self, name: str | None, **settings: Any) -> None:
        super().__init__(name, **settings)
        words = {flag: word for word, flags in WORDS.items() for flag in flags.split()}
        for parameter in self.params:
            if parameter.metavar is None and parameter.name in words:
                parameter.metavar = words[parameter.name]

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Without arguments that are hidden."""
        shown = (p for p in self.get_params(ctx) if not getattr(p, "hidden", False))
        return ["[OPTIONS]", *(piece for p in shown for piece in p.get_usage_pieces(ctx))]

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """The examples, each on a line of its own."""
        path = ctx.command_path.partition(" ")[2]
        lines = [line.strip() for line in EXAMPLES.get(path, "").strip().splitlines()]
        if lines:
            formatter.write(f"\nExamples:\n{''.join(f'  {line}' + chr(10) for line in lines)}")
