"""Whole models on the device kernels give the definition: interpreted, or compiled on a GPU."""

import pytest
import torch
from torch import Tensor

from nsa_kernels.dispatch import layer_kernels
from tests.support.device_paged import DevicePagedModel
from tests.support.dialects import MODELS, diffuse_decoder
from tests.support.paged import whole

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOKENS = torch.randint(0, 97, (71,), generator=torch.Generator().manual_seed(7)).tolist()
pytestmark = pytest.mark.filterwarnings("ignore:.*encountered in.*:RuntimeWarning")

FEW = ["base", "lucidrains", "tied_normed_biased"]
"""Of the models that are checked everywhere; on a GPU, and when slow ones are asked for, all."""


def check(name: str, chunks: list[int], num_tokens: int) -> None:
    tokens = TOKENS[:num_tokens]
    decoder = diffuse_decoder(MODELS[name])
    expected = whole(decoder, tokens)
    decoder = decoder.to(DEVICE).join()
    kernels = layer_kernels(DEVICE)
    model = DevicePagedModel(decoder, 16, kernels, poison=torch.nan, device=DEVICE)
    with torch.inference_mode():
        found: Tensor = model.run(tokens, chunks).cpu()
    scale = expected.abs().max()
    torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", FEW)
def test_chunks_and_single_tokens_equal_the_definition(name: str) -> None:
    check(name, [22, 1, 1, 6], 30)


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [[71], [19] * 4, [1] * 71, [16, 1, 15, 1, 1, 31, 6]])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_in_all_kinds_of_chunks(name: str, chunks: list[int]) -> None:
    check(name, chunks, 71)


@pytest.mark.skipif(DEVICE.type == "cpu", reason="this machine has no GPU")
@pytest.mark.parametrize("chunks", [[71], [19] * 4, [1] * 71])
@pytest.mark.parametrize("name", MODELS)
def test_every_model_on_a_gpu(name: str, chunks: list[int]) -> None:
    check(name, chunks, 71)
