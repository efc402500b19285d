"""Memory of a training step at 8,192 tokens, in a process of its own."""

import subprocess
import sys

LENGTH = 8192
BOUND_MIB = 450
"""One matrix of all queries by all keys is 1,024 MiB for four heads, and there would be several."""

_STEP = """
import resource, sys, torch
from nsa_serve.model.trainable import LanguageModel
from nsa_serve.config import ModelConfig, NSAConfig
torch.set_num_threads(2)
config = ModelConfig(
    vocab_size=64, hidden_size=32, num_layers=1, num_heads=4, num_kv_heads=2, head_dim=8,
    intermediate_size=32, max_position_embeddings=8192,
    nsa=NSAConfig(compressor="mean", branch_kv="shared", intra_block_positions="none"),
)
model = LanguageModel(config)
def step(length):
    tokens = torch.randint(0, 64, (1, length))
    logits = model(tokens)
    torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:]).backward()
step(64)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
step(int(sys.argv[1]))
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())
print((after - before) / 1024)
"""


def test_a_step_at_8k_tokens_holds_no_matrix_of_all_queries_and_keys() -> None:
    path = f"import sys; sys.path[:0] = {sys.path!r}\n"
    result = subprocess.run(
        [sys.executable, "-c", path + _STEP, str(LENGTH)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert float(result.stdout) < BOUND_MIB, f"{result.stdout} MiB"
