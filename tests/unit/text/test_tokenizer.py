"""Text to ids and back, with the byte vocabulary and with one rebuilt from GGUF."""

import random
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors

from nsa_serve.errors import ModelLoadError, RequestError
from nsa_serve.model.loading.gguf import GGUFFile
from nsa_serve.model.loading.gguf_tokenizer import read_tokenizer
from nsa_serve.model.loading.write import write_json
from nsa_serve.text.byte_level import byte_alphabet
from nsa_serve.text.tokenizer import Tokenizer
from nsa_serve.text.tokenizer_config import TokenizerConfig
from tests.support.gguf_files import write_gguf
from tests.support.model_folders import edit_json, write_tiny_folder
from tests.support.resident import resident

END = 258
"""Id of <|im_end|> in the byte vocabulary."""


@pytest.fixture(scope="module")
def rebuilt(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, {})
    return Tokenizer(read_tokenizer(GGUFFile(path)), TokenizerConfig(), None)


def _sentence_piece() -> Tokenizer:
    vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"▁": 256, "h": 257, "▁h": 258}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=[("▁", "h")], byte_fallback=True))
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return Tokenizer(backend, TokenizerConfig(), None)


def _random_texts(count: int) -> list[str]:
    rng = random.Random(0)
    ranges = [(0x00, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x1F300, 0x1FAFF)]

    def character() -> str:
        if rng.random() < 0.3:
            return rng.choice(" 12 the\n\tin")
        return chr(rng.randint(*rng.choice(ranges)))

    return ["".join(character() for _ in range(rng.randint(0, 30))) for _ in range(count)]


def test_five_thousand_random_texts_come_back_exactly(rebuilt: Tokenizer) -> None:
    for text in _random_texts(5_000):
        assert rebuilt.decode(rebuilt.encode(text), skip_special_tokens=False) == text


def test_bytes_of_the_tokens_are_the_bytes_of_the_text(rebuilt: Tokenizer) -> None:
    for text in _random_texts(500):
        ids = rebuilt.encode(text)
        assert b"".join(rebuilt.token_bytes(i) for i in ids) == text.encode()


def test_digits_stay_apart_where_a_merge_would_join_them(rebuilt: Tokenizer) -> None:
    assert [rebuilt.token_text(i) for i in rebuilt.encode("12 the in")] == [
        "1",
        "2",
        " the",
        " ",
        "in",
    ]


def test_the_byte_alphabet_is_the_librarys() -> None:
    assert sorted(byte_alphabet()) == sorted(pre_tokenizers.ByteLevel.alphabet())


def test_a_byte_is_its_own_id() -> None:
    tokenizer = Tokenizer.byte_level()
    assert tokenizer.vocab_size == 259
    assert tokenizer.eos_token_id == END
    assert tokenizer.encode("aé<|im_end|>") == [*"aé".encode(), END]
    assert all(tokenizer.token_bytes(byte) == bytes([byte]) for byte in range(256))


def test_special_tokens_are_skipped_on_request() -> None:
    tokenizer = Tokenizer.byte_level()
    ids = tokenizer.encode("a<|im_end|>")
    assert tokenizer.decode(ids) == "a"
    assert tokenizer.decode(ids, skip_special_tokens=False) == "a<|im_end|>"


def test_half_a_character_is_shown_as_a_replacement() -> None:
    tokenizer = Tokenizer.byte_level()
    assert tokenizer.token_text(0xC3) == "\ufffd"
    assert tokenizer.token_bytes(0xC3) == b"\xc3"
    assert tokenizer.token_text(END) == "<|im_end|>"


def test_unknown_ids_stand_for_nothing() -> None:
    assert Tokenizer.byte_level().token_bytes(10_000) == b""


def test_sentence_piece_tokens_keep_their_space_and_their_bytes() -> None:
    tokenizer = _sentence_piece()
    ids = tokenizer.encode("h hé")
    assert tokenizer.decode(ids) == "h hé"
    assert b"".join(tokenizer.token_bytes(i) for i in ids) == " h hé".encode()
    assert tokenizer.token_text(258) == " h"


def test_text_that_is_no_unicode_is_a_bad_request() -> None:
    with pytest.raises(RequestError, match="not valid Unicode"):
        Tokenizer.byte_level().encode("\ud800")


@pytest.mark.parametrize(
    ("add_bos_token", "post_processor", "expected"),
    [
        (None, False, [97]),
        (False, False, [97]),
        (True, False, [256, 97]),
        (None, True, [256, 97]),
        (False, True, [97]),
        (True, True, [256, 97]),
    ],
)
def test_bos_goes_first_only_where_the_files_ask_for_it(
    tmp_path: Path, add_bos_token: bool | None, post_processor: bool, expected: list[int]
) -> None:
    folder = write_tiny_folder(tmp_path)
    edit_json(
        folder / "tokenizer_config.json",
        bos_token={"content": "<|endoftext|>"},
        add_bos_token=add_bos_token,
    )
    if post_processor:
        backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        backend.post_processor = processors.TemplateProcessing(
            single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 256)]
        )
        backend.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.from_folder(folder)
    assert tokenizer.encode("a") == expected
    assert tokenizer.encode("<|endoftext|>a")[:2] != [256, 256] or post_processor


def test_limits_left_in_the_file_do_not_cut_prompts(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path)
    backend = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    backend.enable_truncation(4)
    backend.enable_padding(length=16)
    backend.save(str(folder / "tokenizer.json"))
    assert Tokenizer.from_folder(folder).encode("abcdefgh") == list(b"abcdefgh")


def test_the_vocabulary_ends_behind_its_highest_id() -> None:
    backend = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 41}, merges=[]))
    assert Tokenizer(backend, TokenizerConfig(), None).vocab_size == 42
    backend.add_tokens([AddedToken("c")])
    assert Tokenizer(backend, TokenizerConfig(), None).vocab_size >= 42


@pytest.mark.parametrize(
    ("name", "content", "cause"),
    [
        ("tokenizer.json", b"{}", "Model missing"),
        ("tokenizer.json", b"\xff\x00", "tokenizer.json"),
        ("tokenizer_config.json", b'{"eos_token": "</s>"}', "'</s>' is not in the vocabulary"),
        ("tokenizer_config.json", b'{"chat_template": "{% for %}"}', "does not render"),
        ("chat_template.jinja", b"{{ messages[0].content.missing() }}", "does not render"),
        ("chat_template.jinja", b"\xff", "not UTF-8"),
    ],
)
def test_damaged_files_give_one_line(tmp_path: Path, name: str, content: bytes, cause: str) -> None:
    folder = write_tiny_folder(tmp_path)
    (folder / name).write_bytes(content)
    with pytest.raises(ModelLoadError, match=cause) as caught:
        Tokenizer.from_folder(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_jinja_file_wins_over_the_config(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}!")
    assert Tokenizer.from_folder(folder).encode_chat([{"role": "user", "content": "a"}]) == [97, 33]


def test_of_several_named_templates_the_default_is_taken(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path)
    templates = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    edit_json(folder / "tokenizer_config.json", chat_template=templates)
    assert Tokenizer.from_folder(folder).encode_chat([]) == [ord("d")]


def test_without_a_template_chat_is_refused(tmp_path: Path) -> None:
    folder = write_tiny_folder(tmp_path)
    write_json(folder / "tokenizer_config.json", {})
    tokenizer = Tokenizer.from_folder(folder)
    assert not tokenizer.has_chat_template
    with pytest.raises(RequestError, match="no chat template"):
        tokenizer.encode_chat([{"role": "user", "content": "a"}])


@pytest.mark.parametrize("special", [True, False])
def test_words_that_never_come_again_take_no_memory(special: bool) -> None:
    tokenizer, rng = Tokenizer.byte_level(), random.Random(0)

    def read(count: int) -> None:
        for _ in range(count):
            word = rng.randbytes(100).hex()
            if special:
                tokenizer.encode(word)
            else:
                tokenizer.encode_chat([{"role": "user", "content": word}])

    read(2000)
    before = resident()
    read(6000)
    assert resident() - before < 4 << 20  # 10,000 kept words would be 40 MiB
