"""Gradients against finite differences, in float64: every compressor, each branch, the gates."""

from typing import Any, get_args

import msgspec
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from nsa_serve.config import CompressorKind, ModelConfig, NSAConfig
from nsa_serve.model.compressors import make_compressor
from nsa_serve.model.rope import Rope
from nsa_serve.model.trainable import NativeSparseAttention
from nsa_serve.model.training import TrainingOptions
from tests.support.dialects import DIALECTS, random_decoder

LENGTH = 14
TINY = msgspec.structs.replace(
    DIALECTS["base"], compress_block=4, compress_stride=2, select_block=4, num_selected=3, window=5
)
BRANCHES = {"compressed": (1.0, 0.0, 0.0), "selected": (0.0, 1.0, 0.0), "window": (0.0, 0.0, 1.0)}


def check(module: nn.Module, *inputs: Tensor) -> None:
    """Of the output by the inputs and by every parameter."""
    names = [name for name, _ in module.named_parameters()]
    weights = [p.detach().clone().requires_grad_() for p in module.parameters()]
    leaves = [x.requires_grad_() for x in inputs]

    def run(*values: Tensor) -> Tensor:
        given = dict(zip(names, values[len(leaves) :], strict=True))
        out: Tensor = functional_call(module, given, values[: len(leaves)])
        return out

    assert torch.autograd.gradcheck(run, (*leaves, *weights), fast_mode=True)


def normal(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("kind", get_args(CompressorKind))
@pytest.mark.parametrize("shared", [False, True])
def test_compressors(kind: CompressorKind, shared: bool) -> None:
    torch.manual_seed(0)
    phi = make_compressor(kind, kv_heads=2, dim=4, block=3, hidden=5, shared=shared, act="gelu")
    check(phi.double(), normal(2, 2, 3, 4))


def layer_of(nsa: NSAConfig, **options: Any) -> tuple[NativeSparseAttention, ModelConfig]:
    config = ModelConfig(
        vocab_size=8, hidden_size=6, num_layers=1, num_heads=2, num_kv_heads=1, head_dim=4,
        intermediate_size=4, max_position_embeddings=32, nsa=nsa,
    )  # fmt: skip
    layer = NativeSparseAttention(config, options=TrainingOptions(query_chunk=5, **options))
    (attention,) = random_decoder(config, seed=2).attentions
    layer.attention.load_state_dict(attention.state_dict())
    return layer.double(), config


@pytest.mark.parametrize("branch", BRANCHES)
@pytest.mark.parametrize("branch_kv", ["shared", "independent"])
def test_each_branch(branch: str, branch_kv: Any) -> None:
    nsa = msgspec.structs.replace(
        TINY, gate="none", fixed_gates=BRANCHES[branch], branch_kv=branch_kv
    )
    layer, config = layer_of(nsa)
    check(layer, normal(2, LENGTH, config.hidden_size))


@pytest.mark.parametrize(
    "changes",
    [
        {"gate": "softmax", "gate_bias": True, "gate_hidden": 3},
        {"gate_scope": "group", "gate_input": "query_mean"},
        {"gate_input": "constant", "gate_scope": "shared", "gate": "softmax"},
        {"compressor": "mlp", "intra_block_positions": "kv", "memory_slots": 1, "padding": "left"},
        {"compressed_rope": "block_start", "compressor": "linear", "compressor_tied": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_gated_layers(changes: dict[str, Any]) -> None:
    layer, config = layer_of(msgspec.structs.replace(TINY, **changes))
    check(layer, normal(2, LENGTH, config.hidden_size))


def test_the_choice_passes_on_the_gradient_of_each_chosen_blocks_share() -> None:
    """Finite differences cannot see it, for no value changes. So against the formula, written for
    one query after the other: logit + share − constant, where the constant equals the share."""
    nsa = msgspec.structs.replace(
        TINY,
        gate="none",
        fixed_gates=(0.0, 1.0, 0.0),
        compress_block=2,
        select_block=2,
        num_selected=4,
    )
    layer, config = layer_of(nsa, differentiable_selection=True)
    x = normal(1, LENGTH, config.hidden_size)
    parameters = list(layer.parameters())
    found = torch.autograd.grad(layer(x).sum(), parameters)

    attention = layer.attention
    rotate = Rope(config).at(torch.arange(LENGTH), torch.float64)
    heads = attention.heads(attention.project(x[0])[0], rotate)
    means = heads.k[:, 0].unflatten(0, (-1, 2)).mean(1)
    rows = []
    for t in range(LENGTH):
        visible = means[: (t + 1) // 2]
        share = torch.zeros(t // 2 + 1, dtype=torch.float64)
        if len(visible):
            mass = (heads.q[t] @ visible.T * attention.scale).softmax(-1).sum(0)
            share[: len(mass)] = mass / 2  # two heads
        current, worth = t // 2, share.tolist()
        forced = {j for j in (0, current - 1, current) if j >= 0}
        rest = sorted(set(range(current + 1)) - forced, key=lambda j: -worth[j])
        chosen = forced | set(rest[: nsa.num_selected - len(forced)])
        keys = [i for i in range(t + 1) if i // 2 in chosen]
        blocks = torch.tensor([i // 2 for i in keys])
        bias = (share - share.detach())[blocks]
        logits = heads.q[t] @ heads.k[keys, 0].T * attention.scale + bias
        rows.append((logits.softmax(-1) @ heads.v[keys, 0]).flatten())
    expected = torch.autograd.grad(attention.o_proj(torch.stack(rows)).sum(), parameters)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
