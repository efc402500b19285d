"""int8 layers: error bounds, rows that do not depend on their neighbours, whole decoders."""

import pytest
import torch
from torch import Tensor, nn

from nsa_serve.model import fused, int8
from nsa_serve.model.decoder import Decoder
from nsa_serve.model.int8 import Int8Linear, quantize, split_planes
from nsa_serve.model.norm import RMSNorm
from tests.support.dialects import MODELS, random_decoder
from tests.support.paged import PagedModel, whole

pytestmark = pytest.mark.skipif(not int8.supported(), reason="this CPU has no int8 products")

INPUTS, OUTPUTS = 200, 96
TOKENS = torch.randint(0, 97, (45,), generator=torch.Generator().manual_seed(0)).tolist()
STACKED, ONE_AFTER_THE_OTHER = range(1, 33), range(33, 71)
"""Numbers of rows for each of the two ways in which a product is computed."""


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


WEIGHT, BIAS = random(OUTPUTS, INPUTS, seed=0), random(OUTPUTS, seed=1)


def rounded(weight: Tensor) -> Tensor:
    """The weights that an int8 layer has, in float64."""
    scale = weight.abs().amax(1, keepdim=True) / 127
    return (weight / scale).round().double() * scale.double()


def put_together(planes: Tensor, magnitude: Tensor) -> Tensor:
    high, low = planes.double()
    return magnitude.double() * (254 * high + low) / 32258


@pytest.mark.parametrize("magnitude", [1e-20, 1e-3, 1.0, 7.3, 1e30])
def test_two_planes_err_by_at_most_a_64516th_of_the_rows_magnitude(magnitude: float) -> None:
    x = random(50, 999, seed=2)
    x[::2] = x[::2].sign() * x[::2].abs() ** 4  # few large values, many small
    x = x * magnitude
    planes, largest = split_planes(x)
    error = (put_together(planes, largest) - x.double()).abs() / largest.double()
    assert error.max() <= (1 / 64516) * (1 + 1e-2)  # the rest is float32 rounding of x · 127 / s
    assert torch.equal(largest, x.abs().amax(1, keepdim=True))


def test_every_half_step_of_the_planes_stays_within_int8() -> None:
    steps = torch.arange(-254, 255) / 254.0
    x = torch.cat([steps, torch.tensor([1.0])])[None]
    planes, largest = split_planes(x)
    assert (put_together(planes, largest) - x.double()).abs().max() <= 1 / 64516 * 1.01


def test_a_product_errs_by_no_more_than_the_planes() -> None:
    x = random(70, INPUTS, seed=3)
    weight = rounded(WEIGHT)
    found = Int8Linear(WEIGHT.clone(), BIAS)(x).double()
    expected = x.double() @ weight.T + BIAS.double()
    bound = x.abs().amax(1, keepdim=True).double() / 64516 * weight.abs().sum(1)
    assert bool(((found - expected).abs() <= bound).all())
    assert (found - expected).norm() / expected.norm() < 3e-5


@pytest.mark.parametrize("sizes", [STACKED, ONE_AFTER_THE_OTHER])
def test_a_row_has_the_same_bits_whatever_stands_beside_it(sizes: range) -> None:
    layer = Int8Linear(WEIGHT.clone(), BIAS)
    x = random(max(sizes), INPUTS, seed=4)
    x[5] *= 1e20
    expected = layer(x)
    for rows in sizes:
        assert torch.equal(layer(x[:rows]), expected[:rows]), f"first {rows} rows"
        assert torch.equal(layer(x[-rows:]), expected[-rows:]), f"last {rows} rows"


def test_the_two_ways_of_computing_agree_to_a_rounding() -> None:
    layer = Int8Linear(WEIGHT.clone(), BIAS)
    x = random(70, INPUTS, seed=5)
    together, apart = layer(x), torch.cat([layer(row[None]) for row in x])
    assert (together - apart).abs().max() <= 2e-7 * apart.abs().max()


@pytest.mark.parametrize("rows", [1, 40])
def test_zero_rows_give_the_bias_and_tiny_rows_no_more(rows: int) -> None:
    layer = Int8Linear(WEIGHT.clone(), BIAS)
    for value in (0.0, 1e-45, 1e-38, 1e-37):
        assert torch.equal(layer(torch.full((rows, INPUTS), value)), BIAS.expand(rows, -1))


@pytest.mark.parametrize("rows", [1, 40])
def test_huge_rows_stay_finite_as_long_as_their_product_does(rows: int) -> None:
    x = random(rows, INPUTS, seed=6).clamp(-1, 1) * 1e36
    found = Int8Linear(WEIGHT.clone(), None)(x)
    expected = x.double() @ rounded(WEIGHT).T
    assert (found.double() - expected).norm() / expected.norm() < 3e-5


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("rows", [3, 40])
def test_a_row_that_is_not_finite_spoils_itself_alone(bad: float, rows: int) -> None:
    layer = Int8Linear(WEIGHT.clone(), BIAS)
    x = random(rows, INPUTS, seed=7)
    healthy = layer(x)
    x[1, 3] = bad
    found = layer(x)
    assert bool(found[1].isnan().all())
    others = [i for i in range(rows) if i != 1]
    assert torch.equal(found[others], healthy[others])


def test_leading_dimensions_are_free() -> None:
    layer = Int8Linear(WEIGHT.clone(), BIAS)
    x = random(2, 3, 5, INPUTS, seed=9)
    assert torch.equal(layer(x), layer(x.flatten(0, 2)).view(2, 3, 5, OUTPUTS))


def test_an_output_without_weights_is_its_bias() -> None:
    weight = WEIGHT.clone()
    weight[7] = 0.0
    assert torch.equal(Int8Linear(weight, BIAS)(random(3, INPUTS, seed=8))[:, 7], BIAS[7].expand(3))


def with_rounded_weights(decoder: Decoder, stored: Tensor) -> Decoder:
    """float32 layers that have the weights of int8 layers, and the embedding as it is stored."""
    embedding = decoder.model.embed_tokens
    if decoder.lm_head is None:
        decoder.lm_head = nn.Linear(embedding.embedding_dim, embedding.num_embeddings, bias=False)
        decoder.lm_head.weight.data = embedding.weight.data
    embedding.weight.data = stored.float()
    for module in decoder.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = rounded(module.weight.data).float()
    return decoder.requires_grad_(False)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_an_int8_decoder_is_the_decoder_of_its_rounded_weights(name: str) -> None:
    config = MODELS[name]
    decoder = quantize(random_decoder(config).join())
    stored = decoder.model.embed_tokens.weight.data
    expected = whole(with_rounded_weights(random_decoder(config), stored), TOKENS)
    scale = expected.abs().max()
    for found in (whole(decoder, TOKENS), PagedModel(decoder, 16).run(TOKENS, [1, 20, 3, 45])):
        error = (found - expected).abs() / scale
        assert error.median() < 1e-4
        assert error.max() < 5e-3


@pytest.mark.parametrize("rows", [1, 2, 31, 70])
def test_compiled_loops_equal_torch(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(rows, 96, generator=torch.Generator().manual_seed(rows)) * 3.0
    linear = Int8Linear(torch.randn(40, 96, generator=torch.Generator().manual_seed(1)), None)
    norm = RMSNorm(96, 1e-5)
    assert fused.INSTALLED
    with torch.inference_mode():
        compiled = split_planes(x), linear(x), norm(x)
        monkeypatch.setattr(fused, "INSTALLED", False)
        plain = split_planes(x), linear(x), norm(x)
    (planes, magnitude), (plain_planes, plain_magnitude) = compiled[0], plain[0]
    assert torch.equal(magnitude, plain_magnitude)
    value, plain_value = (254 * p[0].int() + p[1].int() for p in (planes, plain_planes))
    assert (value - plain_value).abs().max() <= 1
    torch.testing.assert_close(
        compiled[1], plain[1], rtol=0, atol=1e-4 * float(plain[1].abs().max())
    )
    torch.testing.assert_close(compiled[2], plain[2], rtol=1e-6, atol=1e-6)
