"""The GGUF reader agrees with the gguf package, and survives any damage to the file."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsa_serve.errors import ModelLoadError
from nsa_serve.model.loading.gguf import GGUFFile
from nsa_serve.model.loading.gguf_llama import read_config, read_tensors
from nsa_serve.model.loading.gguf_tokenizer import read_tokenizer, read_tokenizer_config
from tests.support.gguf_files import random_weights, write_gguf


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, random_weights())
    return path


def _header_size(path: Path) -> int:
    return min(tensor.offset for tensor in GGUFFile(path).tensors.values())


def test_metadata_is_what_the_gguf_package_reads(path: Path) -> None:
    reader = gguf.GGUFReader(path)
    expected = {k: f.contents() for k, f in reader.fields.items() if not k.startswith("GGUF.")}
    assert GGUFFile(path).metadata == expected


def test_tensors_are_what_the_gguf_package_reads(path: Path) -> None:
    file = GGUFFile(path)
    reader = gguf.GGUFReader(path)
    assert file.tensors.keys() == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(file.read(tensor.name), expected)


def _complaint(path: Path) -> str | None:
    try:
        _use_everything(path)
    except ModelLoadError as error:
        return str(error)
    return None


def _use_everything(path: Path) -> None:
    file = GGUFFile(path)
    read_tokenizer(file)
    read_tokenizer_config(file)
    with np.errstate(all="ignore"):
        list(read_tensors(file, read_config(file)))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_mutated_header_gives_one_line_or_loads(
    path: Path, tmp_path: Path, data: st.DataObject
) -> None:
    content = bytearray(path.read_bytes())
    header = _header_size(path)
    # Tensor infos and the early keys are where a byte means the most: aim there half of the time.
    places = st.one_of(st.integers(0, header - 1), st.integers(0, 64))
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        content[place] = data.draw(st.sampled_from([0, 1, 2, 8, 9, 127, 128, 255]))
    mutated = tmp_path / "mutated.gguf"
    mutated.write_bytes(content)
    complaint = _complaint(mutated)
    assert complaint is None or ("mutated.gguf" in complaint and "\n" not in complaint)


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_a_truncated_file_is_refused(path: Path, tmp_path: Path, data: st.DataObject) -> None:
    content = path.read_bytes()
    truncated = tmp_path / "truncated.gguf"
    truncated.write_bytes(content[: data.draw(st.integers(0, len(content) - 64))])
    with pytest.raises(ModelLoadError):
        GGUFFile(truncated)


def _patched(path: Path, tmp_path: Path, old: bytes, new: bytes) -> Path:
    content = path.read_bytes()
    assert old in content
    patched = tmp_path / "patched.gguf"
    patched.write_bytes(content.replace(old, new, 1))
    return patched


def _u32(value: int) -> bytes:
    return value.to_bytes(4, "little")


def _u64(value: int) -> bytes:
    return value.to_bytes(8, "little")


@pytest.mark.parametrize(
    ("old", "new", "cause"),
    [
        (b"GGUF", b"GGML", "no GGUF file"),
        (b"GGUF" + _u32(3), b"GGUF" + _u32(1), "version 1 is not supported"),
        (b"GGUF" + _u32(3), b"GGUF" + _u32(3 << 24), "version"),
        (b"GGUF" + _u32(3) + _u64(20), b"GGUF" + _u32(3) + _u64(2**60), "tensors do not fit"),
        (
            b"llama.block_count" + _u32(4) + _u32(2),
            b"general.alignment" + _u32(4) + _u32(3),
            "general.alignment 3",
        ),
        (b"llama.context_length", b"tokenizer.ggml.model", "is there twice"),
        (b"llama.block_count" + _u32(4), b"llama.block_count" + _u32(77), "value type 77"),
        (b"blk.0.ffn_up.weight", b"blk.1.ffn_up.weight", "is there twice"),
        (b"output_norm.weight" + _u32(1), b"output_norm.weight" + _u32(9), "9 dimensions"),
        (_u32(1) + _u64(64) + _u32(0), _u32(1) + _u64(64) + _u32(99), "type 99"),
        (_u32(1) + _u64(64) + _u32(0), _u32(1) + _u64(2**61) + _u32(0), "not within the file"),
        (_u32(2) + _u64(64), _u32(2) + _u64(65), "cannot have the shape"),
    ],
)
def test_each_check_names_its_cause(
    path: Path, tmp_path: Path, old: bytes, new: bytes, cause: str
) -> None:
    with pytest.raises(ModelLoadError, match=cause):
        _use_everything(_patched(path, tmp_path, old, new))


@pytest.mark.parametrize("content", [b"", b"GGUF"])
def test_a_file_with_hardly_a_byte_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(ModelLoadError, match=r"x\.gguf"):
        GGUFFile(tmp_path / "x.gguf")
