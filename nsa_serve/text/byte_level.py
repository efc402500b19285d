"""What the strings of a vocabulary stand for, and a vocabulary of single bytes."""

import re
from functools import cache

import tokenizers
from tokenizers import AddedToken, decoders, models, pre_tokenizers

_BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


@cache
def byte_alphabet() -> tuple[str, ...]:
    """GPT-2's printable character for each byte: itself where printable, else from U+0100 on."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    shifted = {byte: chr(0x100 + place) for place, byte in enumerate(others)}
    return tuple(shifted.get(byte, chr(byte)) for byte in range(256))


@cache
def _bytes_of() -> dict[str, int]:
    return {character: byte for byte, character in enumerate(byte_alphabet())}


def token_to_bytes(token: str, *, byte_level: bool) -> bytes:
    """The bytes behind a vocabulary entry: GPT-2's alphabet if `byte_level`, else SentencePiece."""
    if byte_level:
        return bytes(_bytes_of()[character] for character in token if character in _bytes_of())
    fallback = _BYTE_FALLBACK.fullmatch(token)
    if fallback:
        return bytes([int(fallback[1], 16)])
    return token.replace("▁", " ").encode()


def byte_level_backend(*, special: bool = True) -> tokenizers.Tokenizer:
    """Token i is byte i; then, if `special`, <|endoftext|>, <|im_start|>, <|im_end|>."""
    vocabulary = {character: byte for byte, character in enumerate(byte_alphabet())}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    if not special:
        return backend
    names = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    backend.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in names])
    return backend
