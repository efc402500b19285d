"""The decoder: embedding, layers of attention and gated MLP, norm, head."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nsa_serve.config import ModelConfig
from nsa_serve.model.attention import Attention, AttentionContext
from nsa_serve.model.linear import Joined, join
from nsa_serve.model.norm import RMSNorm
from nsa_serve.model.rope import Rope, Rotation

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


class MLP(nn.Module):
    """down(act(gate(x)) · up(x))"""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(hidden, inner, bias=bias)
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)
        self.gate_up: Joined | None = None
        self.act = _ACTIVATIONS[config.hidden_act]

    def join(self) -> None:
        """Make one matrix of the first two projections: for inference only, not to be undone."""
        self.gate_up = join(self, "gate_proj", "up_proj")

    def forward(self, x: Tensor) -> Tensor:
        """[T, hidden] → [T, hidden]"""
        gate, up = self.gate_up(x) if self.gate_up else (self.gate_proj(x), self.up_proj(x))
        return self.down_proj(self.act(gate) * up)


class Layer(nn.Module):
    """A pre-norm layer."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config, index)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, rotate: Rotation, context: AttentionContext) -> Tensor:
        """[T, hidden] → [T, hidden]"""
        x = x + self.self_attn(self.input_layernorm(x), rotate, context)
        return x + self.mlp(self.post_attention_layernorm(x))


class Trunk(nn.Module):
    """Everything but the head; a module of its own because checkpoints name it `model`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Decoder(nn.Module):
    """A decoder-only language model over T tokens, of one sequence or of many: which token sees
    which is the attention context's matter. State dict names are Hugging Face Llama's, and
    `model.layers.{i}.self_attn.nsa.*` for what NSA adds."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.rope = Rope(config)
        self.lm_head: nn.Module | None = None
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def attentions(self) -> list[Attention]:
        """The attention of each layer."""
        return [layer.self_attn for layer in self.model.layers if isinstance(layer, Layer)]

    def join(self) -> "Decoder":
        """Join projections of one input: for inference only, not to be undone."""
        for layer in self.model.layers:
            assert isinstance(layer, Layer)
            layer.self_attn.join()
            layer.mlp.join()
        return self

    def forward(self, token_ids: Tensor, positions: Tensor, context: AttentionContext) -> Tensor:
        """token_ids, positions [T] → hidden states [T, hidden], normed."""
        x = self.model.embed_tokens(token_ids).to(self.model.norm.weight.dtype)
        rotate = self.rope.at(positions, x.dtype)
        for layer in self.model.layers:
            x = layer(x, rotate, context)
        hidden: Tensor = self.model.norm(x)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, hidden] → [N, vocab] float32."""
        if self.lm_head is None:
            return F.linear(hidden, self.model.embed_tokens.weight.to(hidden.dtype)).float()
        logits: Tensor = self.lm_head(hidden)
        return logits.float()


def expected_tensors(config: ModelConfig) -> dict[str, torch.Size]:
    """Names and shapes of a model folder's tensors."""
    with torch.device("meta"):
        return {name: value.shape for name, value in Decoder(config).state_dict().items()}
