"""Dense attention over pages by other libraries equals the definition, poisoned pages or not."""

import importlib
import importlib.metadata
import importlib.util
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from nsa_kernels.batch import DecodeRows, PrefillChunks
from nsa_kernels.dense import BackendError, dense_backend, dense_backends, flash3, xformers_ops
from nsa_kernels.dense.pages import as_head_pages, gathered, head_page_table

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
PAGE = 16
NUM_PAGES = 24


def _attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """One query [H, D] over keys [kv_heads, L, D] and values, in float64."""
    group = q.shape[0] // k.shape[0]
    k, v = (x.double().repeat_interleave(group, 0) for x in (k, v))
    logits = torch.einsum("hd,hld->hl", q.double(), k) * scale
    return torch.einsum("hl,hld->hd", logits.softmax(-1), v)


class _Pages:
    """Caches that hold NaN wherever no sequence wrote."""

    def __init__(self, heads: int, dim: int, value_dim: int, lengths: list[int]) -> None:
        generator = torch.Generator().manual_seed(0)
        self.k = torch.full((NUM_PAGES, heads, PAGE, dim), math.nan)
        self.v = torch.full((NUM_PAGES, heads, PAGE, value_dim), math.nan)
        order = torch.randperm(NUM_PAGES, generator=generator)
        width = max(-(-length // PAGE) for length in lengths) + 1
        self.table = torch.full((len(lengths), width), NUM_PAGES + 7, dtype=torch.int32)
        self.keys, self.values = [], []
        for row, length in enumerate(lengths):
            keys = torch.randn(heads, length, dim, generator=generator)
            values = torch.randn(heads, length, value_dim, generator=generator)
            for start in range(0, length, PAGE):
                page = int(order[0])
                order = order[1:]
                stop = min(start + PAGE, length)
                self.table[row, start // PAGE] = page
                self.k[page, :, : stop - start] = keys[:, start:stop]
                self.v[page, :, : stop - start] = values[:, start:stop]
            self.keys.append(keys)
            self.values.append(values)


SHAPES = [(4, 4, 8, 8), (6, 2, 16, 16), (8, 1, 8, 12)]


@pytest.mark.parametrize(("heads", "kv_heads", "dim", "value_dim"), SHAPES)
def test_torch_decodes_as_defined(heads: int, kv_heads: int, dim: int, value_dim: int) -> None:
    lengths = [1, 16, 17, 50, 0]
    pages = _Pages(kv_heads, dim, value_dim, lengths)
    q = torch.randn(len(lengths), heads, dim)
    rows = DecodeRows(torch.tensor(lengths, dtype=torch.int32) - 1, pages.table, 50)
    out = dense_backend("sdpa", q.device).decode(q, pages.k, pages.v, rows, 0.3)
    for row in range(4):
        want = _attend(q[row], pages.keys[row], pages.values[row], 0.3)
        torch.testing.assert_close(out[row].double(), want, rtol=1e-5, atol=1e-5)
    assert not out[4].any()


@pytest.mark.parametrize(("heads", "kv_heads", "dim", "value_dim"), SHAPES)
def test_torch_prefills_chunks_as_defined(
    heads: int, kv_heads: int, dim: int, value_dim: int
) -> None:
    firsts, counts = [0, 13, 31], [19, 1, 18]
    lengths = [first + count for first, count in zip(firsts, counts, strict=True)]
    pages = _Pages(kv_heads, dim, value_dim, lengths)
    q = torch.randn(sum(counts), heads, dim)
    chunks = PrefillChunks(firsts, counts, pages.table)
    out = dense_backend("sdpa", q.device).prefill(q, pages.k, pages.v, chunks, 0.3)
    token = 0
    for row, (first, count) in enumerate(zip(firsts, counts, strict=True)):
        for position in range(first, first + count):
            seen = slice(0, position + 1)
            want = _attend(q[token], pages.keys[row][:, seen], pages.values[row][:, seen], 0.3)
            torch.testing.assert_close(out[token].double(), want, rtol=1e-5, atol=1e-5)
            token += 1


def test_prefill_fills_what_it_is_given() -> None:
    pages = _Pages(2, 8, 8, [20])
    q, out = torch.randn(20, 4, 8), torch.zeros(20, 4, 8)
    chunks = PrefillChunks([0], [20], pages.table)
    backend = dense_backend("sdpa", q.device)
    assert backend.prefill(q, pages.k, pages.v, chunks, 0.3, out=out) is out
    assert out.any()


def test_every_kv_head_of_a_page_can_be_a_page_of_its_own() -> None:
    pages = _Pages(3, 8, 8, [40, 20])
    table = pages.table.clamp_max(NUM_PAGES - 1)
    split = gathered(as_head_pages(pages.k).transpose(1, 2), head_page_table(table, 3))
    whole = gathered(pages.k, table)
    assert split.shape[:2] == (6, 1)
    torch.testing.assert_close(split.view_as(whole), whole, equal_nan=True)


def test_backends_say_why_they_cannot_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "xformers", None)
    reasons = dense_backends(torch.device("cpu"))
    assert reasons.keys() == {"triton", "xformers", "sdpa"}
    assert reasons["sdpa"] == ""
    assert "need a GPU" in reasons["xformers"]
    with pytest.raises(BackendError, match="need a GPU"):
        dense_backend("xformers", torch.device("cpu"))


def test_a_library_that_is_none_is_told(tmp_path: Path) -> None:
    path = tmp_path / "fa3.so"
    path.write_bytes(b"no library")
    with pytest.raises(BackendError, match=r"fa3\.so cannot be loaded"):
        flash3.load(path)


def test_what_flash3_is_not_asked_for_is_neutral() -> None:
    q = torch.zeros(2, 4, 8)
    cache = torch.zeros(5, 2, PAGE, 8)
    calls: dict[str, dict[str, object]] = {}

    def forward(**values: object) -> list[Tensor]:
        calls["fwd"] = values
        return [q]

    def metadata(**values: object) -> Tensor:
        calls["plan"] = values
        return torch.tensor([7])

    library = flash3.Flash3(
        forward, metadata, ("q", "k", "v", "k_new", "softcap", "num_splits"), ("has_softcap",)
    )
    rows = DecodeRows(torch.tensor([3, 9]), torch.zeros(2, 1, dtype=torch.int32), 10)
    step = library.decode_step(q, cache, cache, rows, planned=True)
    assert library.attend(q, cache, cache, step, 0.5) is q
    given = calls["fwd"]
    assert given["k_new"] is None
    assert (given["softcap"], given["num_splits"], given["softmax_scale"]) == (0.0, 0, 0.5)
    assert isinstance(given["k"], Tensor)
    assert given["k"].shape == (5, PAGE, 2, 8)
    assert isinstance(given["seqused_k"], Tensor)
    assert given["seqused_k"].tolist() == [4, 10]
    assert isinstance(given["scheduler_metadata"], Tensor)
    assert calls["plan"]["has_softcap"] is False
    chunks = PrefillChunks([3, 0], [2, 7], torch.zeros(2, 1, dtype=torch.int32))
    library.attend(q, cache, cache, library.prefill_step(chunks), 0.5)
    for name, value in (("cu_seqlens_q", [0, 2, 9]), ("seqused_k", [5, 7])):
        tensor = calls["fwd"][name]
        assert isinstance(tensor, Tensor)
        assert tensor.tolist() == value
    assert (calls["fwd"]["max_seqlen_q"], calls["fwd"]["max_seqlen_k"]) == (7, 7)
    assert "scheduler_metadata" not in library.decode_step(q, cache, cache, rows, planned=False)


@pytest.mark.parametrize(
    ("dim", "value_dim", "page", "supported"),
    [(64, 64, 64, True), (128, 128, 128, True), (96, 96, 64, False), (192, 128, 64, False),
     (64, 64, 32, False)],
)  # fmt: skip
def test_shapes_that_xformers_decodes_over_pages(
    dim: int, value_dim: int, page: int, supported: bool
) -> None:
    k, v = torch.empty(1, 1, page, dim), torch.empty(1, 1, page, value_dim)
    assert xformers_ops.reads_pages(k, v) is supported


def test_an_xformers_of_another_build_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = SimpleNamespace(_cpp_library_load_exception=RuntimeError("built\n for another"))
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "nvidia" else object()
    )
    monkeypatch.setattr(importlib.metadata, "version", lambda _: "0.0.35")
    monkeypatch.setattr(importlib, "import_module", lambda _: broken)
    with pytest.raises(BackendError, match=r"0\.0\.35 without operators: built for another"):
        xformers_ops.load()


@pytest.mark.skipif(DEVICE.type != "cuda", reason="needs a GPU")
@pytest.mark.parametrize("name", ["triton", "xformers", "sdpa"])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(32, 8, 128), (9, 3, 64), (64, 4, 128)])
def test_backends_agree_on_a_gpu(name: str, heads: int, kv_heads: int, dim: int) -> None:
    if dense_backends(DEVICE)[name]:
        pytest.skip(dense_backends(DEVICE)[name])
    generator = torch.Generator().manual_seed(0)
    k, v = (torch.randn(100, kv_heads, 64, dim, generator=generator) for _ in range(2))
    table = torch.randperm(100, generator=generator).view(4, 25).to(torch.int32)
    positions = torch.tensor([5, 64, 1000, -1], dtype=torch.int32)
    q = torch.randn(4, heads, dim, generator=generator)
    chunk_q = torch.randn(300, heads, dim, generator=generator)
    rows, chunks = DecodeRows(positions, table, 1001), PrefillChunks([40, 0], [200, 100], table[:2])
    want = dense_backend("sdpa", q.device)
    on_device = DecodeRows(positions.to(DEVICE), table.to(DEVICE), 1001)
    chunks_on_device = PrefillChunks([40, 0], [200, 100], table[:2].to(DEVICE))
    q_, k_, v_, chunk_ = (x.to(DEVICE, torch.bfloat16) for x in (q, k, v, chunk_q))
    backend = dense_backend(name, DEVICE)  # type: ignore[arg-type]
    scale = dim**-0.5
    for got, expected in (
        (backend.decode(q_, k_, v_, on_device, scale), want.decode(q, k, v, rows, scale)),
        (
            backend.prefill(chunk_, k_, v_, chunks_on_device, scale),
            want.prefill(chunk_q, k, v, chunks, scale),
        ),
    ):
        error = (got.cpu().float() - expected).norm() / expected.norm()
        assert error < 1e-2
