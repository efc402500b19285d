"""A look at what the layers select: the definition's blocks and gates, and no other token."""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from nsa_serve.config import EngineConfig, ModelConfig
from nsa_serve.engine import model_runner
from nsa_serve.engine.core import EngineCore
from nsa_serve.engine.load_model import load_model_runner
from nsa_serve.engine.messages import (
    AddSequence,
    LayerSelection,
    ReportProgress,
    Selection,
    SequenceProgress,
    StepOutputs,
    WatchSequence,
)
from nsa_serve.errors import RequestError
from nsa_serve.model.attention import Attention, NSABranches
from nsa_serve.model.decoder import Decoder
from nsa_serve.model.definition import WholeSequence
from nsa_serve.model.gates import BranchGates
from nsa_serve.model.heads import Heads, Projected
from nsa_serve.model.rope import Rotation
from nsa_serve.params import SamplingParams, StructuredOutputs
from nsa_serve.structured.matcher import Grammar
from tests.support.device_engine import device_core, device_runner
from tests.support.dialects import DIALECTS
from tests.support.engine import add_message, stand_in_core
from tests.support.model_folder import engine_config, model_core, write_sharp_folder
from tests.support.model_folders import TINY, TINY_NSA

GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
MODELS: dict[str, ModelConfig] = {
    "tiny": TINY,
    "paper": msgspec.structs.replace(TINY, nsa=DIALECTS["paper"]),
    "lucidrains": msgspec.structs.replace(TINY, nsa=DIALECTS["lucidrains"]),
    "fixed gates": msgspec.structs.replace(
        TINY, nsa=msgspec.structs.replace(TINY_NSA, gate="none", fixed_gates=(0.0, 1.0, 0.0))
    ),
    "mixed": msgspec.structs.replace(TINY, layer_kinds=("nsa", "dense")),
}
PROMPTS = [
    torch.randint(0, 256, (n,), generator=torch.Generator().manual_seed(n)).tolist()
    for n in (60, 9, 33)
]


class NotingDefinition(WholeSequence):
    """The definition, which notes what the last query selects in each layer."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(decoder.rope)
        self.layers: list[LayerSelection] = []
        self._chosen: list[list[int]] = []

    def dense(self, layer: Attention, projected: Projected, rotate: Rotation) -> Tensor:
        self.layers.append(LayerSelection(None, None))
        return super().dense(layer, projected, rotate)

    def sparse(
        self,
        layer: Attention,
        nsa: NSABranches,
        projected: Projected,
        rotate: Rotation,
        gates: BranchGates | None,
    ) -> Tensor:
        out = super().sparse(layer, nsa, projected, rotate, gates)
        means = [list(nsa.nsa.fixed_gates)] * layer.num_kv_heads
        if gates is not None:
            group = layer.num_heads // layer.num_kv_heads
            heads = gates.weights[-1].expand(layer.num_heads, 3)
            means = [
                heads[i : i + group].mean(0).tolist() for i in range(0, layer.num_heads, group)
            ]
        self.layers.append(LayerSelection(self._chosen, means))
        return out

    def _compressed(
        self, layer: Attention, nsa: NSABranches, heads: Heads
    ) -> tuple[Tensor, Tensor]:
        compressed, chosen = super()._compressed(layer, nsa, heads)
        self._chosen = [[i for i in ids if i >= 0] for ids in chosen[:, -1].tolist()]
        return compressed, chosen


def by_definition(decoder: Decoder, tokens: list[int]) -> list[LayerSelection]:
    context = NotingDefinition(decoder)
    ids = torch.tensor(tokens)
    decoder(ids, torch.arange(len(ids)), context)
    return context.layers


def run(core: EngineCore, watched: int | None) -> tuple[dict[int, list[int]], list[Selection]]:
    """Continue the prompts; look at one sequence's every decode step."""
    tokens: dict[int, list[int]] = {i: [] for i in range(len(PROMPTS))}
    selections: list[Selection] = []
    for sequence_id, prompt in enumerate(PROMPTS):
        core.add(AddSequence(sequence_id, prompt, GREEDY))
    while core.has_work:
        if watched is not None:
            core.handle(WatchSequence(watched))
        step = core.step()
        selections += step.selections or []
        for output in step.outputs:
            tokens[output.sequence_id] += output.new_token_ids
    return tokens, selections


def assert_same(found: LayerSelection, expected: LayerSelection) -> None:
    assert found.selected_block_ids == expected.selected_block_ids
    assert (found.gates is None) == (expected.gates is None)
    for mine, theirs in zip(found.gates or [], expected.gates or [], strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


CORES: dict[str, Callable[[Path], EngineCore]] = {"cpu": model_core, "gpu": device_core}
"""The runner for GPUs here over plain torch in the kernels' place."""
both_runners = pytest.mark.parametrize("core_of", CORES.values(), ids=CORES)


@both_runners
@pytest.mark.parametrize("name", MODELS)
def test_blocks_and_gates_are_the_definitions(
    name: str, core_of: Callable[[Path], EngineCore], tmp_path: Path
) -> None:
    folder, decoder = write_sharp_folder(tmp_path, MODELS[name])
    tokens, selections = run(core_of(folder), watched=0)
    seen = [s for s in selections if s.unavailable is None]
    prompt = PROMPTS[0]
    assert [s.position for s in seen] == list(range(len(prompt), len(prompt) + 11))
    nsa = MODELS[name].nsa
    assert nsa is not None
    for selection in seen[::5]:
        assert (selection.sequence_id, selection.select_block) == (0, nsa.select_block)
        context = [*prompt, *tokens[0]][: selection.position + 1]
        expected = by_definition(decoder, context)
        assert len(selection.layers) == len(expected) == 2
        for mine, theirs in zip(selection.layers, expected, strict=True):
            assert_same(mine, theirs)
    if name == "tiny":
        first, second = zip(*(s.layers for s in seen), strict=True)
        assert first != second, "layers that never differ would hide a mix-up"


@both_runners
def test_a_short_context_selects_everything(
    core_of: Callable[[Path], EngineCore], tmp_path: Path
) -> None:
    folder, _ = write_sharp_folder(tmp_path)
    _, selections = run(core_of(folder), watched=1)
    first = next(s for s in selections if s.unavailable is None)
    assert first.position == 9
    assert [layer.selected_block_ids for layer in first.layers] == [[[0, 1, 2]] * 2] * 2


@both_runners
def test_watching_changes_no_token(core_of: Callable[[Path], EngineCore], tmp_path: Path) -> None:
    folder, _ = write_sharp_folder(tmp_path)
    unwatched, nothing = run(core_of(folder), watched=None)
    assert nothing == []
    for sequence_id in unwatched:
        assert run(core_of(folder), watched=sequence_id)[0] == unwatched


@pytest.mark.parametrize("name", MODELS)
def test_a_look_leaves_a_gpus_caches_as_they_were(name: str, tmp_path: Path) -> None:
    """Bit for bit: what a batch computed is not what its rows compute alone."""
    folder, _ = write_sharp_folder(tmp_path, MODELS[name])
    runners = [device_runner(folder) for _ in range(2)]
    cores = [EngineCore(engine_config(folder), runner) for runner in runners]
    for core in cores:
        for sequence_id, prompt in enumerate(PROMPTS):
            core.add(AddSequence(sequence_id, prompt, GREEDY))
    num_seen = 0
    while cores[0].has_work:
        cores[1].handle(WatchSequence(0))
        _, step = (core.step() for core in cores)
        num_seen += sum(s.unavailable is None for s in step.selections or [])
        for unwatched, watched in zip(*(runner.caches for runner in runners), strict=True):
            for a, b in zip(unwatched.tensors, watched.tensors, strict=True):
                assert torch.equal(a, b)
    assert num_seen == 11


def test_nobody_watching_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = write_sharp_folder(tmp_path)
    core = model_core(folder)

    def refuse(*_: object) -> None:
        raise AssertionError("somebody looked")

    monkeypatch.setattr(model_runner, "selection_of", refuse)
    monkeypatch.setattr("nsa_serve.engine.core.progress_of", refuse)
    core.add(AddSequence(0, PROMPTS[0], GREEDY))
    step = core.step()
    while core.has_work:
        step = core.step()
    plain = msgspec.msgpack.encode(StepOutputs(step.outputs, step.stats))
    assert msgspec.msgpack.encode(step) == plain


def test_a_look_that_fails_ends_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = write_sharp_folder(tmp_path)
    expected, _ = run(model_core(folder), watched=None)

    def fail(*_: object) -> None:
        raise RuntimeError("no look today")

    monkeypatch.setattr(model_runner, "selection_of", fail)
    tokens, selections = run(model_core(folder), watched=0)
    assert tokens == expected
    assert {s.unavailable for s in selections if s.position == 0} >= {"it could not be recorded"}


def unavailable(core: EngineCore, sequence_id: int) -> str | None:
    """Why a sequence that runs, or not, cannot be watched."""
    core.handle(WatchSequence(sequence_id))
    for _ in range(5):
        for selection in core.step().selections or []:
            return selection.unavailable
    return None


def test_what_cannot_be_watched_is_said(tmp_path: Path) -> None:
    core = stand_in_core()
    core.add(add_message(0, b"watched"))
    assert unavailable(core, 0) == "this runner has no layers"
    assert unavailable(core, 7) == "the sequence waits for its grammar, or has ended"
    folder, _ = write_sharp_folder(tmp_path / "dense", msgspec.structs.replace(TINY, nsa=None))
    for core in (model_core(folder), device_core(folder)):
        core.add(AddSequence(0, PROMPTS[1], GREEDY))
        assert unavailable(core, 0) == "the model's attention is dense"


def test_progress_is_told_once_to_who_asks() -> None:
    core = stand_in_core()
    core.add(add_message(0, bytes(range(100))))  # in two steps of at most 64 tokens
    core.add(add_message(1, b"x"))
    core.handle(ReportProgress())
    first = core.step().progress
    assert first is not None
    assert [(p.sequence_id, p.stage, p.num_prompt_tokens) for p in first] == [
        (0, "prefill", 100),
        (1, "decode", 1),
    ]
    assert 0 < first[0].num_computed_tokens < 100
    assert first[0].num_pages * 4 >= first[0].num_computed_tokens
    assert core.step().progress is None
    core.handle(ReportProgress())
    (second, other) = core.step().progress or []
    assert (second.stage, second.num_output_tokens, other.num_output_tokens) == ("decode", 2, 3)


def test_progress_tells_who_waits_for_a_grammar() -> None:
    core = stand_in_core()
    grammar: Future[Grammar] = Future()
    core._grammars.submit = lambda spec: grammar  # type: ignore[method-assign]
    structured = SamplingParams(max_tokens=8, structured_outputs=StructuredOutputs(regex="a+"))
    core.add(AddSequence(0, [1, 2, 3], structured, arrived=7.0))
    core.add(add_message(1, b"x"))

    def stages() -> dict[int, str]:
        core.handle(ReportProgress())
        return {p.sequence_id: p.stage for p in core.step().progress or []}

    assert stages() == {0: "grammar", 1: "decode"}
    core.handle(ReportProgress())
    (_, waiting) = core.step().progress or []
    assert waiting == SequenceProgress(0, "grammar", 7.0, 3, 0, 0, 0, 0, 0)
    grammar.set_exception(RequestError("no grammar"))
    assert stages() == {1: "decode"}


@pytest.mark.slow
def test_watching_changes_no_token_of_compiled_steps() -> None:
    """Over the built-in model, whose decode steps are not computed by the code that looks."""
    config = EngineConfig(cpu_cache_gib=0.5)
    core = EngineCore(config, load_model_runner(config))
    prompt = [100 + i * 37 % 4000 for i in range(1500)]
    tokens: list[list[int]] = []
    for watched in (False, True):
        core.add(AddSequence(watched, prompt, msgspec.structs.replace(GREEDY, max_tokens=40)))
        tokens.append([])
        num_seen = 0
        while core.has_work:
            if watched:
                core.handle(WatchSequence(watched))
            step = core.step()
            num_seen += sum(s.unavailable is None for s in step.selections or [])
            tokens[-1] += [i for output in step.outputs for i in output.new_token_ids]
        assert num_seen == 39 * watched
    assert tokens[0] == tokens[1]
