"""The compiled loop gives what the int8 layers and the definition give, and the same bits for a
token in whatever step it is computed."""

from typing import Any

import pytest
import torch
from msgspec.structs import replace
from torch import Tensor

from nsa_serve.config import ModelConfig, NSAConfig, RopeScaling
from nsa_serve.model import int8
from nsa_serve.model.compiled import compile_steps
from nsa_serve.model.decoder import Decoder
from nsa_serve.model.int8 import quantize
from tests.support.dialects import BASE, DIALECTS, model_config, random_decoder
from tests.support.paged import PagedModel, whole

pytest.importorskip("numba")
if not int8.supported():
    pytest.skip("this CPU has no int8 products", allow_module_level=True)

from nsa_serve.model.compiled import loop
from nsa_serve.model.compiled.planes import USES_TILES
from nsa_serve.model.compiled.products import TERMS
from nsa_serve.model.compiled.step import supports, version
from nsa_serve.model.compiled.vectors import LANES
from tests.support.compiled_paged import CompiledPagedModel

PAGE = 16
LENGTH = 71
TOKENS = torch.randint(0, 97, (LENGTH,), generator=torch.Generator().manual_seed(7)).tolist()
BIASES = {"attention_bias": True, "attention_output_bias": True, "mlp_bias": True}


def config_of(dialect: str | NSAConfig | None, **changes: Any) -> ModelConfig:
    """A model of sizes that vectors divide, and a dialect by its name or of its own."""
    sizes = {"hidden_size": 64, "head_dim": 16, "intermediate_size": 128, **changes}
    return model_config(DIALECTS[dialect] if isinstance(dialect, str) else dialect, **sizes)


CONFIGS: dict[str, ModelConfig] = {
    "dense": config_of(None),
    "dense_biased": config_of(None, **BIASES),
    **{
        name: config_of(name)
        for name in (
            "base",
            "built_in",
            "two_fixed_gates",
            "no_overlap",
            "wide_slots",
            "wide_blocks",
            "narrow_blocks",
            "strict",
            "no_forced",
            "shared_gates",
            "dense_len",
            "window_of_one",
        )
    },
    "group_gates": config_of(replace(BASE, gate_scope="group")),
    "biased": config_of("base", **BIASES),
    "gates_biased": config_of(replace(BASE, gate_bias=True)),
    "all_biased": config_of(replace(BASE, gate_bias=True), **BIASES),
    "odd_group": config_of("base", num_heads=12, num_kv_heads=4),
    "group_of_seven": config_of("base", num_heads=14, num_kv_heads=2, v_head_dim=32),
    "one_kv_head": config_of("base", num_kv_heads=1),
    "no_group": config_of("base", num_kv_heads=4),
    "narrow_values": config_of("base", head_dim=48, v_head_dim=16),
    "wide_values": config_of("base", v_head_dim=80),
    "interleaved": config_of("base", rope_interleaved=True),
    "tied": config_of("built_in", tie_word_embeddings=True, vocab_size=131),
    "yarn": config_of(
        "base",
        rope_scaling=RopeScaling(rope_type="yarn", factor=4.0, original_max_position_embeddings=64),
    ),
}


def decoder_of(config: ModelConfig) -> Decoder:
    return quantize(random_decoder(config).join())


@pytest.fixture(params=CONFIGS, scope="module")
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return decoder_of(CONFIGS[request.param])


@pytest.fixture(scope="module")
def base() -> Decoder:
    return decoder_of(CONFIGS["base"])


def close(found: Tensor, expected: Tensor) -> None:
    """As close as roundings to 16 bits let two ways of adding be."""
    error = (found - expected).abs() / expected.abs().max()
    assert error.median() < 3e-5
    assert error.max() < 2e-3


def test_tokens_one_by_one_equal_the_definition(decoder: Decoder) -> None:
    assert supports(decoder)
    close(CompiledPagedModel(decoder, PAGE).run(TOKENS, [1] * LENGTH), whole(decoder, TOKENS))


def test_any_chunks_give_the_bits_of_single_tokens(decoder: Decoder) -> None:
    expected = CompiledPagedModel(decoder, PAGE).run(TOKENS, [1] * LENGTH)
    for chunks in ([LENGTH], [7] * LENGTH, [16] * LENGTH, [1, 33, 1, 2, 5, 29]):
        found = CompiledPagedModel(decoder, PAGE).run(TOKENS, chunks)
        assert torch.equal(found, expected), chunks


def test_caches_hold_what_the_layers_themselves_write(decoder: Decoder) -> None:
    """Slots too: the ones that complete, and no others."""
    ours, theirs = CompiledPagedModel(decoder, PAGE), PagedModel(decoder, PAGE)
    ours.run(TOKENS, [1, 40, 1, 30])
    theirs.run(TOKENS, [1, 40, 1, 30])
    for cache, expected in zip(ours.caches, theirs.caches, strict=True):
        for found, reference in zip(cache.tensors, expected.tensors, strict=True):
            written = reference != 1e4
            assert torch.equal(written, found.isfinite())
            close(found[written], reference[written])


def step_through(model: PagedModel, lengths: list[int]) -> dict[int, list[Tensor]]:
    """Prefixes of one sequence, of which the last 4 tokens are computed in one batch of single
    tokens: their logits by length."""
    sequences = {length: model.sequence(TOKENS[:length]) for length in lengths}
    for length, sequence in sequences.items():
        model.step([(sequence, length - 4)])
    out: dict[int, list[Tensor]] = {length: [] for length in lengths}
    for _ in range(4):
        logits = model.step([(sequence, 1) for sequence in sequences.values()])
        for length, row in zip(lengths, logits, strict=True):
            out[length].append(row)
    return out


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 8, 9, 16])
def test_a_row_has_the_same_bits_in_a_batch_as_alone(
    base: Decoder, num_threads: int, size: int
) -> None:
    """Lengths end on both sides of the borders of slots, blocks, pages and windows."""
    lengths = [5, 7, 8, 9, 12, 13, 15, 16, 17, 20, 31, 32, 33, 36, 65, 71][-size:]
    alone = CompiledPagedModel(base, PAGE, num_threads=1).run(TOKENS, [LENGTH])
    rows = step_through(CompiledPagedModel(base, PAGE, num_threads), lengths)
    for length, found in rows.items():
        assert torch.equal(torch.cat(found), alone[length - 4 : length]), length


def test_chunks_and_single_tokens_in_one_step_equal_each_alone(decoder: Decoder) -> None:
    alone = CompiledPagedModel(decoder, PAGE, num_threads=1).run(TOKENS, [LENGTH])
    model = CompiledPagedModel(decoder, PAGE)
    sequences = [model.sequence(TOKENS[:length]) for length in (17, 36, 64, 70)]
    model.step([(sequences[1], 35), (sequences[2], 32)])
    work = [(sequences[0], 17), (sequences[1], 1), (sequences[2], 32), (sequences[3], 61)]
    starts = [sequence.num_computed for sequence, _ in work]
    for start, logits in zip(starts, model.step(work), strict=True):
        assert torch.equal(logits, alone[start : start + len(logits)])


@pytest.mark.parametrize("num_threads", [1, 2])
def test_many_rows_give_the_bits_of_few(base: Decoder, num_threads: int) -> None:
    """Beyond some number each thread takes rows of its own, and more than go through at once."""
    tokens = torch.randint(0, 97, (491,), generator=torch.Generator().manual_seed(8)).tolist()
    few = CompiledPagedModel(base, PAGE, num_threads).run(tokens, [37] * 14)
    many = CompiledPagedModel(base, PAGE, num_threads).run(tokens, [491])
    assert torch.equal(few, many)
    close(many, whole(base, tokens))


def test_a_sequence_that_is_not_finite_spoils_itself_alone(base: Decoder) -> None:
    lengths = [20, 33, 50, 71]
    model = CompiledPagedModel(base, PAGE)
    sequences = [model.sequence(TOKENS[:length]) for length in lengths]
    model.step([(sequence, len(sequence.token_ids) - 1) for sequence in sequences])
    healthy = CompiledPagedModel(base, PAGE).run(TOKENS, [LENGTH])
    model.caches[0].k[sequences[2].pages[0], :, 3] = float("inf")
    found = model.step([(sequence, 1) for sequence in sequences])
    for length, row, sequence in zip(lengths, found, sequences, strict=True):
        if sequence is sequences[2]:
            assert bool(row.isnan().all())
        else:
            assert torch.equal(row[0], healthy[length - 1])


def test_pages_of_another_size_change_no_bit(base: Decoder) -> None:
    expected = CompiledPagedModel(base, 8).run(TOKENS, [LENGTH])
    for page_size in (16, 32):
        assert torch.equal(CompiledPagedModel(base, page_size).run(TOKENS, [9] * 8), expected)


def test_models_of_every_kind_share_what_is_compiled_once() -> None:
    for name in ("dense", "all_biased", "interleaved", "wide_values"):
        CompiledPagedModel(decoder_of(CONFIGS[name]), PAGE).run(TOKENS[:4], [3, 1])
    for made in (loop.make_step(version()), loop.make_head(version())):
        assert len(made.signatures) == 1


# Where processor, heads, pages and blocks allow, tokens are attended by tiles.
TILED = {"head_dim": 32, "v_head_dim": 48, "num_heads": 8, "num_kv_heads": 2}
TILED_RULE = {"select_block": 32, "window": 40, "num_selected": 3}
TILED_CONFIGS: dict[str, ModelConfig] = {
    "dense": config_of(None, **TILED),
    "base": config_of(replace(BASE, **TILED_RULE), **TILED),
    "built_in": config_of(replace(DIALECTS["built_in"], select_block=32, num_selected=3), **TILED),
    "wide": config_of(replace(DIALECTS["built_in"], select_block=64), head_dim=64, v_head_dim=80),
}
LONG = torch.randint(0, 97, (300,), generator=torch.Generator().manual_seed(9)).tolist()


@pytest.fixture(params=TILED_CONFIGS, scope="module")
def tiled(request: pytest.FixtureRequest) -> Decoder:
    return decoder_of(TILED_CONFIGS[request.param])


def test_attention_by_tiles_equals_the_definition(tiled: Decoder) -> None:
    model = CompiledPagedModel(tiled, 64)
    assert model.steps.by_tiles == USES_TILES
    close(model.run(LONG, [250, 1, 49]), whole(tiled, LONG))


@pytest.mark.parametrize("page_size", [64, 192])
def test_attention_by_tiles_has_the_same_bits_in_any_step(tiled: Decoder, page_size: int) -> None:
    """Single tokens, chunks of less than a tile, of several, with keys of steps before."""
    expected = CompiledPagedModel(tiled, 64, num_threads=1).run(LONG, [len(LONG)])
    for chunks in ([1] * 300, [3, 61, 1, 2, 90, 1, 1, 141], [32] * 9 + [12]):
        found = CompiledPagedModel(tiled, page_size).run(LONG, chunks)
        assert torch.equal(found, expected), chunks


UNSUPPORTED = {
    "norms of queries and keys": config_of("base", qk_norm=True),
    "another activation": config_of("base", hidden_act="gelu"),
    "a length that vectors do not divide": config_of("base", intermediate_size=TERMS + 16),
    "a head that vectors do not divide": config_of("base", head_dim=LANES // 2, num_heads=16),
    "a group wider than a vector": config_of("base", num_heads=2 * LANES, num_kv_heads=1),
    "dense layers among the sparse": config_of("base", layer_kinds=("dense", "nsa")),
    **{
        name: config_of(name)
        for name in (
            "paper",
            "weighted",
            "linear",
            "left_padding",
            "memory",
            "block_start",
            "raw_keys",
            "max_pool",
            "logit_mean",
            "forced_on_top",
            "half_merge",
            "floor",
            "softmax_gates",
            "query_gates",
        )
    },
}


@pytest.mark.parametrize("reason", UNSUPPORTED)
def test_what_the_loop_does_not_cover_is_left_to_the_decoder(reason: str) -> None:
    decoder = decoder_of(UNSUPPORTED[reason])
    assert compile_steps(decoder, PagedModel(decoder, PAGE).caches, 1) is None


def test_weights_of_another_type_are_left_to_the_decoder() -> None:
    decoder = random_decoder(CONFIGS["base"]).join()
    assert compile_steps(decoder, PagedModel(decoder, PAGE).caches, 1) is None
