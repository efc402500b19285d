"""Frozen configuration: what a model is, and how it is served. Imports no torch.

Every field is checked once, here, on construction; a violation raises `ConfigError` with one
line that names the field.
"""

from typing import Literal

import msgspec

from nsa_serve.errors import ConfigError

CompressorKind = Literal[
    "mean",
    "weighted",
    "linear",
    "mlp",
    "grouped_mlp",
    "conv",
    "attention_pool",
    "single_projection",
    "transformer",
]
CompressorAct = Literal["relu", "gelu"]
LayerKind = Literal["nsa", "dense"]
DType = Literal["auto", "float32", "bfloat16", "float16", "int8"]


_LARGEST = 2**31 - 1
_WIDEST_HEAD = 2**16


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_sane(config: msgspec.Struct, prefix: str = "") -> None:
    """No number is one that tensors, or the arithmetic around them, cannot have."""
    for name in config.__struct_fields__:
        value = getattr(config, name)
        _require(
            not isinstance(value, int) or value <= _LARGEST,
            f"{prefix}{name} must be at most {_LARGEST}",
        )


class NSAConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One dialect of Native Sparse Attention (arXiv 2502.11089); the defaults are the paper's.

    Lengths are in tokens. Compressed slot s completes at token (s + 1)·stride − 1.
    """

    compress_block: int = 32
    compress_stride: int = 16
    select_block: int = 64
    num_selected: int = 16
    """Blocks attended per query and kv head; the forced ones are among them if `forced_counted`."""
    window: int = 512
    """Keys of the sliding window, the query's own included."""

    compressor: CompressorKind = "mlp"
    compressor_shared: bool = False
    """One φ for all kv heads, where the kind has parameters of its own per head."""
    compressor_tied: bool = False
    """One φ for keys and values."""
    compressor_hidden: int = 0
    """Hidden width of the mlp kinds, 0 for compress_block · head_dim; of the transformer's MLP, 0
    for four times its width."""
    compressor_act: CompressorAct = "relu"
    """Between the layers of the mlp kinds."""
    compressor_layers: int = 1
    """Of the transformer, which reads the kv heads of a token joined to one vector."""
    compressor_heads: int = 1
    """Attention heads of the transformer."""
    intra_block_positions: Literal["none", "k", "kv"] = "kv"
    """Learned vectors, one per kv head and place in the block, added to what φ reads."""
    padding: Literal["none", "left"] = "none"
    """`left`: l − d zeros stand before the first token, so every slot from 0 on exists."""
    memory_slots: int = 0
    """Learned compressed tokens that every query sees."""
    compressed_rope: Literal["before", "block_start", "none"] = "before"
    """φ reads rotated keys; or raw keys and the result is rotated at the position of the first
    token it read; or raw keys against unrotated queries."""
    visibility: Literal["inclusive", "strict"] = "inclusive"
    """A slot is seen by the query at the token that completes it, or only after it."""
    importance: Literal["prob_sum", "logit_mean", "max_pool"] = "prob_sum"
    init_blocks: int = 1
    local_blocks: int = 2
    forced_counted: bool = True
    selection: Literal["exact", "half_merge"] = "exact"
    selection_floor: float = 0.0
    """Chosen blocks whose softmax weight among all candidates is at or below this are dropped."""

    gate: Literal["sigmoid", "softmax", "none"] = "sigmoid"
    gate_scope: Literal["head", "group", "shared"] = "head"
    """One triple of gates per query head, per kv head, or per token."""
    gate_input: Literal["hidden", "query_mean", "constant"] = "hidden"
    """The layer's normed input; or the mean raw query of the group (then `gate_scope` is group);
    or nothing: learned numbers, the same for every token."""
    gate_hidden: int = 0
    """Hidden width of the gate's MLP; 0 is a single linear layer."""
    gate_bias: bool = False
    fixed_gates: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """(compressed, selected, window), used where `gate` is none."""
    branch_kv: Literal["shared", "independent"] = "independent"
    """One K/V projection for all branches, or one for each."""
    dense_len: int = 0
    """Queries at positions below this attend densely."""

    def __post_init__(self) -> None:
        _require_sane(self, "nsa.")
        for name in (
            "compress_block",
            "compress_stride",
            "select_block",
            "num_selected",
            "window",
            "compressor_layers",
            "compressor_heads",
        ):
            _require(getattr(self, name) >= 1, f"nsa.{name} must be at least 1")
        for name in (
            "compressor_hidden",
            "memory_slots",
            "init_blocks",
            "local_blocks",
            "gate_hidden",
            "dense_len",
        ):
            _require(getattr(self, name) >= 0, f"nsa.{name} must not be negative")
        l, d, b = self.compress_block, self.compress_stride, self.select_block  # noqa: E741
        _require(l % d == 0, f"nsa.compress_stride {d} must divide nsa.compress_block {l}")
        _require(b % d == 0, f"nsa.compress_stride {d} must divide nsa.select_block {b}")
        _require(0.0 <= self.selection_floor < 1.0, "nsa.selection_floor must be in [0, 1)")
        _require(
            not self.forced_counted or self.init_blocks + self.local_blocks <= self.num_selected,
            "nsa.init_blocks + nsa.local_blocks must not exceed nsa.num_selected",
        )
        _require(
            self.selection == "exact" or (self.num_selected % 2 == 0 and self.local_blocks >= 1),
            "nsa.selection half_merge needs an even nsa.num_selected and nsa.local_blocks >= 1",
        )
        _require(
            self.gate != "none" or any(self.fixed_gates),
            "nsa.fixed_gates must not all be zero",
        )
        _require(
            self.gate_input != "query_mean" or self.gate_scope == "group",
            "nsa.gate_input query_mean needs nsa.gate_scope group",
        )
        _require(
            self.gate_input != "constant" or not (self.gate_hidden or self.gate_bias),
            "nsa.gate_input constant has neither nsa.gate_hidden nor nsa.gate_bias",
        )

    @property
    def slots_per_block(self) -> int:
        """Compressed slots that complete within one selection block."""
        return self.select_block // self.compress_stride

    @property
    def first_slot(self) -> int:
        """The first slot that exists; slots before it would read tokens before the first."""
        return 0 if self.padding == "left" else self.compress_block // self.compress_stride - 1

    @property
    def uses(self) -> tuple[bool, bool, bool]:
        """Which of (compressed, selected, window) can contribute to the output."""
        if self.gate != "none":
            return True, True, True
        compressed, selected, window = (g != 0.0 for g in self.fixed_gates)
        return compressed, selected, window

    @property
    def phi_reads_raw_keys(self) -> bool:
        """Whether φ needs keys that are not those of the selected branch's pages."""
        return self.branch_kv == "independent" or self.compressed_rope != "before"


class RopeScaling(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How rotary frequencies are stretched beyond the trained context: linear, llama3 or YaRN."""

    rope_type: Literal["linear", "llama3", "yarn"]
    factor: float
    original_max_position_embeddings: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None

    def __post_init__(self) -> None:
        _require_sane(self, "rope_scaling.")
        _require(self.factor >= 1.0, "rope_scaling.factor must be at least 1")
        _require(
            self.rope_type != "llama3" or 0.0 < self.low_freq_factor < self.high_freq_factor,
            "rope_scaling.high_freq_factor must be above low_freq_factor, and both above 0",
        )
        _require(
            self.rope_type == "linear" or self.original_max_position_embeddings > 0,
            f"rope_scaling {self.rope_type} needs original_max_position_embeddings",
        )


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A decoder-only transformer whose attention layers are NSA or dense."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    v_head_dim: int = 0
    """0 stands for head_dim."""
    intermediate_size: int
    max_position_embeddings: int
    norm: Literal["rms", "layer"] = "rms"
    """RMSNorm, or LayerNorm with a bias, before each part of a layer and at the end."""
    rms_norm_eps: float = 1e-5
    """ε of the norms, of whichever kind."""
    positions: Literal["rope", "learned", "none"] = "rope"
    """Rotary; or a learned vector for each of max_position_embeddings, added to the embedding."""
    rope_theta: float = 10_000.0
    rope_interleaved: bool = False
    """Rotate neighbouring pairs instead of the two halves of a head."""
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    qk_norm: bool = False
    """RMSNorm of each query and key head."""
    attention_bias: bool = False
    attention_output_bias: bool = False
    mlp: Literal["gated", "plain"] = "gated"
    """down(act(gate(x)) · up(x)), or down(act(up(x)))."""
    mlp_bias: bool = False
    hidden_act: Literal["silu", "gelu", "gelu_tanh", "relu"] = "silu"
    nsa: NSAConfig | None = None
    layer_kinds: tuple[LayerKind, ...] = ()
    """Kind of each layer; empty stands for NSA everywhere if `nsa` is given, else dense."""

    def __post_init__(self) -> None:
        _require_sane(self)
        for name in (
            "vocab_size",
            "hidden_size",
            "num_layers",
            "num_heads",
            "num_kv_heads",
            "head_dim",
            "intermediate_size",
            "max_position_embeddings",
        ):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1")
        _require(
            self.num_heads % self.num_kv_heads == 0,
            f"num_kv_heads {self.num_kv_heads} must divide num_heads {self.num_heads}",
        )
        _require(self.head_dim % 2 == 0, f"head_dim {self.head_dim} must be even")
        _require(self.v_head_dim >= 0, "v_head_dim must not be negative")
        for name in ("head_dim", "v_head_dim"):
            _require(getattr(self, name) <= _WIDEST_HEAD, f"{name} must be at most {_WIDEST_HEAD}")
        _require(self.rope_theta > 0, "rope_theta must be positive")
        _require(self.rms_norm_eps > 0, "rms_norm_eps must be positive")
        _require(
            len(self.layer_kinds) in (0, self.num_layers),
            f"layer_kinds names {len(self.layer_kinds)} layers, num_layers is {self.num_layers}",
        )
        _require(
            self.nsa is not None or "nsa" not in self.layer_kinds,
            "layer_kinds names an nsa layer but there is no nsa section",
        )
        _require(
            self.positions == "rope" or self.rope_scaling is None,
            f"rope_scaling needs positions rope, not {self.positions}",
        )
        _require(
            self.nsa is None or not self.nsa.compressor_tied or self.value_dim == self.head_dim,
            "nsa.compressor_tied needs a v_head_dim equal to head_dim",
        )
        for dim in (self.head_dim, self.value_dim):
            _require(
                self.nsa is None or self.num_kv_heads * dim % self.nsa.compressor_heads == 0,
                f"nsa.compressor_heads must divide the kv heads' joined width, "
                f"{self.num_kv_heads * dim}",
            )

    @property
    def group(self) -> int:
        """Query heads per kv head."""
        return self.num_heads // self.num_kv_heads

    @property
    def value_dim(self) -> int:
        """Width of one value head."""
        return self.v_head_dim or self.head_dim

    @property
    def kinds(self) -> tuple[LayerKind, ...]:
        """Kind of each layer, spelled out."""
        default: LayerKind = "dense" if self.nsa is None else "nsa"
        return self.layer_kinds or (default,) * self.num_layers


DEFAULT_NUM_SEQS = 64
"""Sequences that run at once unless a configuration, or a GPU, says more."""
DEFAULT_NUM_BATCHED_TOKENS = 512


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a model is served. The names are those of the command line's flags."""

    model: str | None = None
    """A model folder; None is the built-in model."""
    attention: Literal["auto", "nsa", "dense"] = "auto"
    dense_backend: Literal["auto", "triton", "xformers", "sdpa"] = "auto"
    """What computes dense attention; without kernels on a GPU it is torch's, sdpa."""
    dtype: DType = "auto"
    device: str = "auto"
    max_model_len: int | None = None
    """Tokens of prompt and output together; None is the model's own limit."""
    max_num_seqs: int | None = None
    """Sequences that run at once; None is 64, on a GPU up to 256."""
    max_num_batched_tokens: int | None = None
    """Tokens, prompt and decode together, that one step computes at most; None is 512, on a GPU
    8192."""
    block_size: int | None = None
    """Tokens of one cache page; None chooses."""
    num_pages: int | None = None
    """Pages of the cache; None sizes it from memory."""
    gpu_memory_utilization: float = 0.9
    cpu_cache_gib: float | None = None
    """Cache size on a CPU; None is a quarter of the free memory, 4 GiB at most."""
    enable_prefix_caching: bool = True
    scheduling_policy: Literal["fcfs", "priority"] = "fcfs"
    max_num_queued_reqs: int = 512
    num_threads: int | None = None
    """Threads of the CPU backend; None is one per core."""
    enforce_eager: bool = False
    """Launch every kernel of a decode step by itself instead of replaying a CUDA graph."""
    runner: Literal["model", "stand-in"] = "model"
    """`stand-in` computes a known token without a model: for tests and for measuring the rest."""

    def __post_init__(self) -> None:
        for name in (
            "max_model_len",
            "max_num_seqs",
            "max_num_batched_tokens",
            "block_size",
            "num_pages",
            "max_num_queued_reqs",
            "num_threads",
        ):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"{name} must be at least 1")
        _require(
            0.0 < self.gpu_memory_utilization <= 1.0, "gpu_memory_utilization must be in (0, 1]"
        )
        _require(self.cpu_cache_gib is None or self.cpu_cache_gib > 0, "cpu_cache_gib must be > 0")

    @property
    def max_num_unfinished(self) -> int:
        """Sequences, running and queued, that a client may have in any engine at once; one that
        runs more of them than a CPU would takes as many more."""
        return (self.max_num_seqs or DEFAULT_NUM_SEQS) + self.max_num_queued_reqs
