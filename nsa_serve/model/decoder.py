"""The decoder: embedding, layers of attention and MLP, norm, head."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from nsa_serve.config import ModelConfig
from nsa_serve.model import ops
from nsa_serve.model.attention import Attention, AttentionContext
from nsa_serve.model.linear import Joined, join
from nsa_serve.model.norm import make_norm
from nsa_serve.model.rope import Rope, Rotation


class MLP(nn.Module):
    """down(act(gate(x)) · up(x)); where it is plain, down(act(up(x)))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gated = config.mlp == "gated"
        if self.gated:
            self.gate_proj = nn.Linear(hidden, inner, bias=bias)
        self.up_proj = nn.Linear(hidden, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden, bias=bias)
        self.gate_up: Joined | None = None
        self.act: ops.Activation = config.hidden_act

    def join(self) -> None:
        """Make one matrix of the first two projections: for inference only, not to be undone."""
        if self.gated:
            self.gate_up = join(self, "gate_proj", "up_proj")

    def forward(self, x: Tensor) -> Tensor:
        """[T, hidden] → [T, hidden]"""
        if self.gate_up is not None:
            return self.down_proj(ops.act_mul(self.gate_up.linear(x), self.act))
        act = ops.ACTIVATIONS[self.act]
        if not self.gated:
            return self.down_proj(act(self.up_proj(x)))
        return self.down_proj(act(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """A pre-norm layer."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.input_layernorm = make_norm(config)
        self.self_attn = Attention(config, index)
        self.post_attention_layernorm = make_norm(config)
        self.mlp = MLP(config)
        self.dropout = 0.0

    def forward(
        self, residual: Tensor, delta: Tensor | None, rotate: Rotation, context: AttentionContext
    ) -> tuple[Tensor, Tensor]:
        """The stream [T, hidden] and what the layer before still has to add to it → the same of
        this layer. So each sum is made together with the norm that reads it."""
        residual, x = ops.add_norm(residual, delta, self.input_layernorm)
        x = self._dropped(self.self_attn(x, rotate, context))
        residual, x = ops.add_norm(residual, x, self.post_attention_layernorm)
        return residual, self._dropped(self.mlp(x))

    def _dropped(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout) if self.training and self.dropout else x


def _normal(rows: int, columns: int, deviation: float) -> Tensor:
    """Random numbers, unless there is nowhere to put them: for `meta`, torch would first import
    its compiler, which takes longer than all else that it does for a model."""
    values = torch.empty(rows, columns)
    return values if values.is_meta else values.normal_(0.0, deviation)


class LearnedPositions(nn.Module):
    """A vector for each position."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        count, hidden = config.max_position_embeddings, config.hidden_size
        self.weight = nn.Parameter(_normal(count, hidden, 0.02))

    def forward(self, positions: Tensor) -> Tensor:
        """[T] → [T, hidden]"""
        return F.embedding(positions, self.weight)


class Trunk(nn.Module):
    """Everything but the head; a module of its own because checkpoints name it `model`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        size = config.vocab_size, config.hidden_size
        self.embed_tokens = nn.Embedding(*size, _weight=_normal(*size, 1.0))
        self.embed_positions: LearnedPositions | None = None
        if config.positions == "learned":
            self.embed_positions = LearnedPositions(config)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_layers))
        self.norm = make_norm(config)

    def embed(self, token_ids: Tensor, positions: Tensor) -> Tensor:
        """token_ids, positions [T] → [T, hidden], of the norm's type."""
        dtype = self.norm.weight.dtype
        x = self.embed_tokens(token_ids).to(dtype)
        if self.embed_positions is not None:
            x = x + self.embed_positions(positions).to(dtype)
        return x


class Decoder(nn.Module):
    """A decoder-only language model over T tokens, of one sequence or of many: which token sees
    which is the attention context's matter. State dict names are Hugging Face Llama's, and
    `model.layers.{i}.self_attn.nsa.*` for what NSA adds."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.model = Trunk(config)
        self.rope = Rope(config)
        self.dropout = 0.0
        self.lm_head: nn.Module | None = None
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def attentions(self) -> list[Attention]:
        """The attention of each layer."""
        return [layer.self_attn for layer in self.model.layers if isinstance(layer, Layer)]

    def set_dropout(self, share: float) -> None:
        """Drop this share of the embedding and of each layer's two outputs, in training mode."""
        self.dropout = share
        for layer in self.model.layers:
            assert isinstance(layer, Layer)
            layer.dropout = share

    def join(self) -> "Decoder":
        """Join projections of one input: for inference only, not to be undone."""
        for layer in self.model.layers:
            assert isinstance(layer, Layer)
            layer.self_attn.join()
            layer.mlp.join()
        return self

    def forward(self, token_ids: Tensor, positions: Tensor, context: AttentionContext) -> Tensor:
        """token_ids, positions [T] → hidden states [T, hidden], normed."""
        residual = self.model.embed(token_ids, positions)
        if self.training and self.dropout:
            residual = F.dropout(residual, self.dropout)
        rotate = self.rope.at(positions, residual.dtype)
        delta: Tensor | None = None
        for layer in self.model.layers:
            residual, delta = layer(residual, delta, rotate, context)
        return ops.add_norm(residual, delta, self.model.norm)[1]

    def logits(self, hidden: Tensor, out: Tensor | None = None) -> Tensor:
        """[N, hidden] → [N, vocab] float32; or written to `out`, of the type of `hidden`."""
        if self.lm_head is None:
            weight = self.model.embed_tokens.weight.to(hidden.dtype)
        elif isinstance(self.lm_head, nn.Linear):
            weight = self.lm_head.weight
        else:
            assert out is None
            logits: Tensor = self.lm_head(hidden)
            return logits.float()
        if out is None:
            return F.linear(hidden, weight).float()
        return torch.mm(hidden, weight.t(), out=out)


def expected_tensors(config: ModelConfig) -> dict[str, torch.Size]:
    """Names and shapes of a model folder's tensors."""
    with torch.device("meta"):
        return {name: value.shape for name, value in Decoder(config).state_dict().items()}
