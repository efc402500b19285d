"""The built-in model is the dense model up to n · l' = 1,024 tokens."""

import pytest
import torch
from torch import Tensor

from nsa_serve.model.definition import WholeSequence
from nsa_serve.model.loading.folder import resolve_model
from nsa_serve.model.loading.weights import load_decoder
from tests.support.paged import PagedModel

LENGTH = 1024


@pytest.fixture(scope="module")
def tokens() -> list[int]:
    return torch.randint(3, 49_152, (LENGTH,), generator=torch.Generator().manual_seed(0)).tolist()


@pytest.fixture(scope="module")
def dense_logits(tokens: list[int]) -> Tensor:
    decoder = load_decoder(resolve_model(None), attention="dense")
    with torch.inference_mode():
        context = WholeSequence(decoder.rope)
        hidden = decoder(torch.tensor(tokens), torch.arange(LENGTH), context)
        return decoder.logits(hidden[::16])


def test_served_logits_equal_the_dense_model_up_to_1024_tokens(
    tokens: list[int], dense_logits: Tensor
) -> None:
    decoder = load_decoder(resolve_model(None), attention="nsa").join()
    with torch.inference_mode():
        model = PagedModel(decoder, page_size=64, num_pages=20)
        chunks = [300, 212, 512]
        served = model.run(tokens, chunks)[::16]
    torch.testing.assert_close(served, dense_logits, rtol=0, atol=1e-4)


def test_defined_logits_equal_the_dense_model_up_to_1024_tokens(
    tokens: list[int], dense_logits: Tensor
) -> None:
    decoder = load_decoder(resolve_model(None), attention="nsa")
    with torch.inference_mode():
        context = WholeSequence(decoder.rope)
        hidden = decoder(torch.tensor(tokens), torch.arange(LENGTH), context)
    torch.testing.assert_close(decoder.logits(hidden[::16]), dense_logits, rtol=0, atol=1e-4)
