"""The model code on its own, over batches of whole sequences: an attention layer, a block, a
language model. Differentiable plain torch, on a CPU and a GPU.

    attention = NativeSparseAttention(config)          # x [batch, time, hidden] → the same
    block = DecoderBlock(config)                       # with norms, MLP and residual sums
    model = LanguageModel(config)                      # tokens [batch, time] → logits

The modules inside are those that serve, so `model.decoder.state_dict()` is a checkpoint; a
compressor by itself is `compressors.make_compressor`.
"""

import torch
from torch import Tensor, nn

from nsa_serve.config import ModelConfig
from nsa_serve.model.attention import Attention
from nsa_serve.model.compressors import HeadLinear
from nsa_serve.model.decoder import Decoder, Layer, LearnedPositions
from nsa_serve.model.rope import Rope, Rotation
from nsa_serve.model.shaped import Float, Int
from nsa_serve.model.training import TrainingContext, TrainingOptions

_DEVIATION = 0.02


class NativeSparseAttention(nn.Module):
    """An attention layer, with its projections and gates. `index` is its place in the model: the
    configuration may have dense layers too."""

    def __init__(
        self, config: ModelConfig, index: int = 0, options: TrainingOptions | None = None
    ) -> None:
        super().__init__()
        self.attention = Attention(config, index)
        self._over = _Batches(Rope(config), options)

    def forward(self, x: Float[Tensor, "batch time hidden"]) -> Float[Tensor, "batch time hidden"]:
        """x: normed; every sequence begins at position 0."""
        rotate, context = self._over.prepare(x)
        return self.attention(x.flatten(0, 1), rotate, context).view_as(x)


class DecoderBlock(nn.Module):
    """A pre-norm layer: attention and MLP, each added to the stream."""

    def __init__(
        self, config: ModelConfig, index: int = 0, options: TrainingOptions | None = None
    ) -> None:
        super().__init__()
        self.layer = Layer(config, index)
        self._over = _Batches(Rope(config), options)
        self.layer.dropout = self._over.options.dropout

    def forward(self, x: Float[Tensor, "batch time hidden"]) -> Float[Tensor, "batch time hidden"]:
        """x: the stream; every sequence begins at position 0."""
        rotate, context = self._over.prepare(x)
        residual, delta = self.layer(x.flatten(0, 1), None, rotate, context)
        return (residual + delta).view_as(x)


class LanguageModel(nn.Module):
    """A decoder over batches of sequences."""

    def __init__(self, config: ModelConfig, options: TrainingOptions | None = None) -> None:
        super().__init__()
        self.decoder = Decoder(config)
        self.options = options or TrainingOptions()
        self.decoder.set_dropout(self.options.dropout)

    def forward(self, tokens: Int[Tensor, "batch time"]) -> Float[Tensor, "batch time vocab"]:
        """Logits of the token after each, float32; every sequence begins at position 0."""
        sequences, length = tokens.shape
        positions = torch.arange(length, device=tokens.device).repeat(sequences)
        context = TrainingContext(self.decoder.rope, sequences, self.options)
        hidden = self.decoder(tokens.flatten(), positions, context)
        return self.decoder.logits(hidden).unflatten(0, (sequences, length))


class _Batches:
    """What attention needs beside x [batch, time, hidden]."""

    def __init__(self, rope: Rope, options: TrainingOptions | None) -> None:
        self.rope, self.options = rope, options or TrainingOptions()

    def prepare(self, x: Tensor) -> tuple[Rotation, TrainingContext]:
        sequences, length = x.shape[:2]
        positions = torch.arange(length, device=x.device).repeat(sequences)
        rotate = self.rope.at(positions, x.dtype)
        return rotate, TrainingContext(self.rope, sequences, self.options)


@torch.no_grad()
def initialize(module: nn.Module, generator: torch.Generator, num_layers: int) -> None:
    """Weights to begin training from: normal of deviation 0.02, smaller for what is added to the
    stream in each of `num_layers` layers; biases zero, norms one. What averages begins as the mean.
    """
    shrunk = _DEVIATION / (2 * num_layers) ** 0.5
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear):
            if name.endswith("to_logits"):  # of attention pooling: it begins as the identity
                continue
            added = name.endswith(("o_proj", "down_proj"))
            child.weight.normal_(0.0, shrunk if added else _DEVIATION, generator=generator)
            if child.bias is not None:
                child.bias.zero_()
        elif isinstance(child, nn.Embedding | LearnedPositions):
            child.weight.normal_(0.0, _DEVIATION, generator=generator)
        elif isinstance(child, HeadLinear):
            bound = child.weight.shape[1] ** -0.5
            child.weight.uniform_(-bound, bound, generator=generator)
    for name, parameter in module.named_parameters():
        if name.endswith("_memory"):
            parameter.normal_(0.0, _DEVIATION, generator=generator)
