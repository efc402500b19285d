"""The context for device kernels, over stand-ins of them, gives the logits of the definition."""

import pytest
import torch
from torch import Tensor

from tests.support.device_kernels import torch_kernels
from tests.support.device_paged import DevicePagedModel
from tests.support.dialects import MODELS, random_decoder
from tests.support.paged import whole

TOKENS = torch.randint(0, 97, (71,), generator=torch.Generator().manual_seed(7)).tolist()


def close(a: Tensor, b: Tensor) -> None:
    scale = b.abs().max()
    torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_chunks_and_single_tokens_equal_the_definition(name: str, joined: bool) -> None:
    decoder = random_decoder(MODELS[name])
    expected = whole(decoder, TOKENS)
    if joined:
        decoder.join()
    model = DevicePagedModel(decoder, 16, torch_kernels())
    close(model.run(TOKENS, [19, 1, 1, 1, 1, 1, 30, 1, 40]), expected)


@pytest.mark.parametrize("name", MODELS)
def test_a_mixed_batch_equals_each_alone(name: str) -> None:
    decoder = random_decoder(MODELS[name])
    expected = whole(decoder, TOKENS)
    model = DevicePagedModel(decoder.join(), 16, torch_kernels())
    counts = {5: 1, 17: 9, 36: 1, 64: 32, 70: 11}
    sequences = [model.sequence(TOKENS[:length]) for length in counts]
    model.step([(sequences[2], 28)])
    while any(s.num_behind for s in sequences):
        work = [
            (s, min(s.num_behind, count))
            for s, count in zip(sequences, counts.values(), strict=True)
            if s.num_behind
        ]
        starts = [s.num_computed for s, _ in work]
        for start, logits in zip(starts, model.step(work), strict=True):
            close(logits, expected[start : start + len(logits)])
