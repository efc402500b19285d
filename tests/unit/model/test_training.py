"""What trains equals the definition, values and gradients, whatever the batch and the chunks."""

import subprocess
import sys

import msgspec
import pytest
import torch
from torch import Tensor

from nsa_serve.model.decoder import Decoder
from nsa_serve.model.definition import WholeSequence
from nsa_serve.model.trainable import DecoderBlock, LanguageModel, NativeSparseAttention
from nsa_serve.model.training import TrainingOptions
from tests.support.dialects import DIALECTS, MODELS, diffuse_decoder, model_config

LENGTH, NUM_SEQUENCES = 47, 2
TOKENS = torch.randint(0, 97, (NUM_SEQUENCES, LENGTH), generator=torch.Generator().manual_seed(3))


def trainable(name: str, options: TrainingOptions) -> LanguageModel:
    """Random weights in float64, where both sides choose the same blocks."""
    model = LanguageModel(MODELS[name], options)
    model.decoder.load_state_dict(diffuse_decoder(MODELS[name], seed=1).state_dict())
    return model.double()


def by_definition(decoder: Decoder) -> Tensor:
    """Hidden states [B, T, hidden], sequence by sequence."""
    positions = torch.arange(LENGTH)
    context = WholeSequence(decoder.rope)
    return torch.stack([decoder(tokens, positions, context) for tokens in TOKENS])


def hidden_of(model: LanguageModel) -> Tensor:
    """Hidden states [B, T, hidden] by what trains."""
    hidden: list[Tensor] = []
    hook = model.decoder.register_forward_hook(lambda _, __, out: hidden.append(out))
    model(TOKENS)
    hook.remove()
    return hidden[0].unflatten(0, (NUM_SEQUENCES, LENGTH))


def gradients(out: Tensor, decoder: Decoder) -> list[Tensor]:
    """Of a loss in which everything counts; zero where a parameter has no part."""
    weights = torch.linspace(-1.0, 1.0, out.numel(), dtype=out.dtype).view_as(out)
    parameters = list(decoder.parameters())
    found = torch.autograd.grad((out * weights).sum(), parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_are_those_of_the_definition(name: str) -> None:
    model = trainable(name, TrainingOptions(query_chunk=13))
    found, expected = hidden_of(model), by_definition(model.decoder)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    ours, theirs = gradients(found, model.decoder), gradients(expected, model.decoder)
    for (parameter, _), a, b in zip(model.decoder.named_parameters(), ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6), parameter


@pytest.mark.parametrize("chunk", [1, 16, LENGTH, 1000])
def test_chunks_of_any_length_give_the_same(chunk: int) -> None:
    model = trainable("lucidrains", TrainingOptions(query_chunk=chunk))
    torch.testing.assert_close(hidden_of(model), by_definition(model.decoder), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["built_in", "logit_mean", "no_forced"])
def test_differentiable_selection_changes_gradients_and_no_value(name: str) -> None:
    plain = trainable(name, TrainingOptions(query_chunk=13))
    through = trainable(name, TrainingOptions(query_chunk=13, differentiable_selection=True))
    a, b = hidden_of(plain), hidden_of(through)
    torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    grads = zip(gradients(a, plain.decoder), gradients(b, through.decoder), strict=True)
    assert any(not torch.allclose(x, y, rtol=1e-3) for x, y in grads)


def test_the_choice_reaches_a_compressor_that_only_ranks() -> None:
    """The selected branch alone: its keys' φ learns from nothing but the choice of blocks."""
    config = model_config(msgspec.structs.replace(DIALECTS["built_in"], compressor="linear"))
    x = torch.randn(2, LENGTH, config.hidden_size)
    for differentiable in (False, True):
        torch.manual_seed(0)
        options = TrainingOptions(differentiable_selection=differentiable)
        layer = NativeSparseAttention(config, options=options)
        layer(x).square().sum().backward()
        assert layer.attention.nsa is not None
        gradient = layer.attention.nsa.compress_k.layers[0].weight.grad  # type: ignore[union-attr,index]
        assert (gradient is not None and bool(gradient.abs().sum() > 0)) == differentiable


def test_a_block_is_a_layer_of_the_decoder() -> None:
    config = MODELS["layer_norm"]
    torch.manual_seed(0)
    block = DecoderBlock(config).double()
    x = torch.randn(NUM_SEQUENCES, 20, config.hidden_size, dtype=torch.float64)
    normed = block.layer.input_layernorm(x)
    attention = NativeSparseAttention(config).double()
    attention.attention = block.layer.self_attn
    middle = x + attention(normed)
    expected = middle + block.layer.mlp(block.layer.post_attention_layernorm(middle))
    torch.testing.assert_close(block(x), expected)


def test_dropout_is_drawn_in_training_and_absent_in_evaluation() -> None:
    dropping = trainable("base", TrainingOptions(dropout=0.5))
    plain = trainable("base", TrainingOptions())
    torch.manual_seed(0)
    first, second = dropping(TOKENS), dropping(TOKENS)
    assert not torch.allclose(first, second)
    torch.manual_seed(0)
    assert torch.equal(first, dropping(TOKENS))
    torch.testing.assert_close(dropping.eval()(TOKENS), plain(TOKENS))


def test_half_precision_trains_on_float32_weights() -> None:
    model = LanguageModel(MODELS["paper"], TrainingOptions(query_chunk=13))
    model.decoder.load_state_dict(diffuse_decoder(MODELS["paper"], seed=1).state_dict())
    expected = model(TOKENS)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(TOKENS)
    logits.square().mean().backward()
    difference = (logits - expected).detach()
    assert float(difference.norm() / expected.detach().norm()) < 0.1
    for parameter in model.parameters():
        assert parameter.grad is None or bool(parameter.grad.isfinite().all())


_CHECK_SHAPES = """
import torch
from jaxtyping import install_import_hook
with install_import_hook(
    ["nsa_serve.model.compressors", "nsa_serve.model.trainable"], "beartype.beartype"
):
    from nsa_serve.model.compressors import make_compressor
    from nsa_serve.model.trainable import DecoderBlock, LanguageModel, NativeSparseAttention
from tests.support.dialects import MODELS

config = MODELS["paper"]
LanguageModel(config)(torch.zeros(2, 19, dtype=torch.int64))
x = torch.randn(2, 19, config.hidden_size)
NativeSparseAttention(config)(x)
DecoderBlock(config)(x)
for kind in ("mean", "weighted", "linear", "mlp", "grouped_mlp", "conv", "attention_pool",
             "single_projection", "transformer"):
    phi = make_compressor(kind, kv_heads=2, dim=4, block=8)
    phi(torch.randn(3, 2, 8, 4))
    try:
        phi(torch.randn(3, 2, 4))
    except Exception as error:
        assert "jaxtyping" in type(error).__module__ or "dim" in str(error), error
    else:
        raise SystemExit(f"{kind} took a window without its tokens")
try:
    LanguageModel(config)(torch.zeros(19, dtype=torch.int64))
except Exception as error:
    assert "batch time" in str(error), error
else:
    raise SystemExit("a sequence without a batch was taken")
"""


def test_annotated_shapes_hold_at_run_time() -> None:
    pytest.importorskip("jaxtyping")
    pytest.importorskip("beartype")
    path = f"import sys; sys.path[:0] = {sys.path!r}\n"
    result = subprocess.run(
        [sys.executable, "-c", path + _CHECK_SHAPES], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
