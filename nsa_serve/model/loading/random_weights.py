"""A decoder with random weights, made on the device that it runs on."""

import torch

from nsa_serve.config import ModelConfig
from nsa_serve.model.decoder import Decoder
from nsa_serve.model.rope import Rope

_DEVIATION = 0.02


def random_decoder(
    config: ModelConfig, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> Decoder:
    """Normal weights of a small deviation, norms of one, everything else zero; the same for the
    same seed on the same kind of device. In evaluation mode."""
    with torch.device("meta"):
        decoder = Decoder(config)
    generator = torch.Generator(device).manual_seed(seed)
    decoder = decoder.to(dtype).to_empty(device=device).requires_grad_(False)
    for name, parameter in decoder.named_parameters():
        if name.endswith("norm.weight"):
            parameter.fill_(1.0)
        elif parameter.ndim > 1:
            parameter.normal_(0.0, _DEVIATION, generator=generator)
        else:
            parameter.zero_()
    decoder.rope = Rope(config, device)
    return decoder.eval()
