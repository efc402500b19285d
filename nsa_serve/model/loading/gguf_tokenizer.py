"""The tokenizer that lies in a GGUF file's metadata, rebuilt for the tokenizers library."""

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

from nsa_serve.errors import ModelLoadError
from nsa_serve.model.loading.gguf import GGUFFile
from nsa_serve.model.loading.json_file import one_line

_CONTROL = 3
"""`tokenizer.ggml.token_type` of special tokens."""


def read_tokenizer(file: GGUFFile) -> tokenizers.Tokenizer:
    """Byte-level BPE with digits one by one (`tokenizer.ggml.pre` smollm); others are refused."""
    kinds = file.get("tokenizer.ggml.model", str), file.get("tokenizer.ggml.pre", str)
    if kinds != ("gpt2", "smollm"):
        raise ModelLoadError(f"{file.path.name}: tokenizer {'/'.join(kinds)} is not supported")
    tokens = file.get_list("tokenizer.ggml.tokens", str)
    merges = [_pair(file, merge) for merge in file.get_list("tokenizer.ggml.merges", str)]
    try:
        model = models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges)
    except Exception as error:  # the library raises nothing more precise
        raise ModelLoadError(f"{file.path.name}: tokenizer: {one_line(error)}") from None
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_control_tokens(file, tokens))
    return tokenizer


def read_tokenizer_config(file: GGUFFile) -> dict[str, object]:
    """The content of tokenizer_config.json."""
    tokens = file.get_list("tokenizer.ggml.tokens", str)
    config: dict[str, object] = {}
    for name, key in (("bos", "bos"), ("eos", "eos"), ("unk", "unknown"), ("pad", "padding")):
        token_id = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if type(token_id) is int and token_id < len(tokens):
            config[f"{name}_token"] = tokens[token_id]
    if type(add_bos := file.metadata.get("tokenizer.ggml.add_bos_token")) is bool:
        config["add_bos_token"] = add_bos
    if type(template := file.metadata.get("tokenizer.chat_template")) is str:
        config["chat_template"] = template
    return config


def _pair(file: GGUFFile, merge: str) -> tuple[str, str]:
    left, _, right = merge.partition(" ")
    if not left or not right:
        raise ModelLoadError(f"{file.path.name}: tokenizer.ggml.merges holds {merge!r}")
    return left, right


def _control_tokens(file: GGUFFile, tokens: list[str]) -> list[AddedToken]:
    kinds = file.get_list("tokenizer.ggml.token_type", int)
    return [
        AddedToken(token, normalized=False, special=True)
        for token, kind in zip(tokens, kinds, strict=False)
        if kind == _CONTROL
    ]
