"""The paged path gives the definition's logits on a GPU too. Runs where there is one."""

import pytest
import torch

from tests.support.dialects import MODELS, random_decoder
from tests.support.paged import PagedModel, whole

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no GPU")

TOKENS = torch.randint(0, 97, (83,), generator=torch.Generator().manual_seed(7)).tolist()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("chunk", [1, 19, 83])
def test_chunks_on_a_gpu_equal_the_definition(name: str, chunk: int) -> None:
    decoder = random_decoder(MODELS[name])
    expected = whole(decoder, TOKENS)
    model = PagedModel(decoder.to("cuda"), 16, device=torch.device("cuda"))
    served = model.run(TOKENS, [chunk] * len(TOKENS)).cpu()
    scale = expected.abs().max()
    torch.testing.assert_close(served / scale, expected / scale, rtol=0, atol=2e-5)
