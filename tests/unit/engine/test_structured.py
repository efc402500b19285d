"""Output that must match a grammar, through the real core over the stand-in runner."""

import json
import re
import time
from typing import Any

import numpy as np
import pytest
import torch

from nsa_serve.engine.constraint import GRAMMAR_FAILED, Constraint, constraint_of
from nsa_serve.engine.core import EngineCore
from nsa_serve.engine.gpu_sampler import GpuSampler
from nsa_serve.engine.messages import SequenceOutput
from nsa_serve.engine.sampler import SamplingState, sample, sampling_state
from nsa_serve.params import SamplingParams, StructuredOutputs
from nsa_serve.text.tokenizer import Tokenizer
from tests.support.engine import add_message, run_to_end, stand_in_config, stand_in_core, tokens_of

ENDS = (256, 258)
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["Ada", "Alan"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
KINDS: dict[str, dict[str, Any]] = {
    "json": {"json": SCHEMA},
    "regex": {"regex": r"[a-f]{3,9}/\d\d\n?"},
    "choice": {"choice": ("yes", "yes, but", "no", 'a "quoted" \\ é 中')},
    "lark": {"grammar": 'start: "<" NAME ">"\nNAME: /[a-z]{2,5}/'},
    "gbnf": {"grammar": 'root ::= "(" (root | "x") ")"'},
}


def params(max_tokens: int = 120, **kind: Any) -> SamplingParams:
    return SamplingParams(max_tokens=max_tokens, structured_outputs=StructuredOutputs(**kind))


def text_of(outputs: list[SequenceOutput]) -> str:
    """The text of an output that must have come to its own end."""
    *token_ids, last = tokens_of(outputs)
    assert outputs[-1].finish_reason == "stop"
    assert last in ENDS
    return Tokenizer.byte_level().decode(token_ids)


def matches(name: str, text: str) -> bool:
    if name == "json":
        value = json.loads(text)
        return set(value) == {"name", "age"} and value["name"] in ("Ada", "Alan")
    if name == "choice":
        return text in KINDS["choice"]["choice"]
    if name == "gbnf":
        return re.fullmatch(r"\(+x\)+", text) is not None and text.count("(") == text.count(")")
    pattern = {"regex": r"[a-f]{3,9}/\d\d\n?", "lark": r"<[a-z]{2,5}>"}[name]
    return re.fullmatch(pattern, text) is not None


@pytest.mark.parametrize("name", [name for name in KINDS if name != "gbnf"])
def test_every_output_matches_and_ends(name: str) -> None:
    core = stand_in_core()
    for i in range(12):
        core.add(add_message(i, [i, 1, 2], params(**KINDS[name])))
    outputs = run_to_end(core)
    texts = [text_of(outputs[i]) for i in range(12)]
    assert all(matches(name, text) for text in texts), texts
    assert len(set(texts)) > 1


def test_gbnf_is_read_as_well() -> None:
    core = stand_in_core()
    core.add(add_message(0, [1], params(max_tokens=200, **KINDS["gbnf"])))
    outputs = run_to_end(core)[0]
    text = Tokenizer.byte_level().decode([i for i in tokens_of(outputs) if i not in ENDS])
    assert re.fullmatch(r"\(+(x\)+)?", text)


def test_neighbours_without_a_grammar_are_not_touched() -> None:
    alone = stand_in_core()
    alone.add(add_message(0, [5, 6]))
    beside = stand_in_core()
    beside.add(add_message(1, [5, 6], params(**KINDS["regex"])))
    beside.add(add_message(0, [5, 6]))
    assert tokens_of(run_to_end(alone)[0]) == tokens_of(run_to_end(beside)[0])


def test_a_preempted_output_is_the_same_and_the_grammar_goes_on() -> None:
    def outputs(core: EngineCore, *, preempt: bool) -> list[str]:
        for i in range(4):
            core.add(add_message(i, [i, 3], params(**KINDS["json"])))
        found: dict[int, list[SequenceOutput]] = {i: [] for i in range(4)}
        step = 0
        while core.has_work:
            for output in core.step().outputs:
                found[output.sequence_id].append(output)
            step += 1
            if preempt and step % 3 == 0:
                for i in range(4):
                    sequence = core._scheduler.find(i)
                    if sequence is not None and sequence.pages:
                        core._scheduler.preempt(i)
            assert core.check_integrity()
        return [text_of(found[i]) for i in range(4)]

    calm = outputs(stand_in_core(), preempt=False)
    assert outputs(stand_in_core(stand_in_config(num_pages=128)), preempt=True) == calm


def test_logprobs_prefix_hits_and_min_tokens_go_with_it() -> None:
    core = stand_in_core()
    fields: dict[str, Any] = {"max_tokens": 40, "logprobs": 2, "min_tokens": 30}
    spec = StructuredOutputs(choice=("no",))
    prompt = list(range(40))
    for i in range(3):
        core.add(add_message(i, prompt, SamplingParams(structured_outputs=spec, **fields)))
        outputs = run_to_end(core)[i]
        assert text_of(outputs) == "no"
        assert all(len(output.logprobs or []) == 1 for output in outputs)
    assert core.step().stats.prefix_cache_hits > 0


def test_a_longer_grammar_is_cut_by_max_tokens() -> None:
    core = stand_in_core()
    core.add(add_message(0, [1], params(max_tokens=5, regex="a{50}")))
    outputs = run_to_end(core)[0]
    assert (tokens_of(outputs), outputs[-1].finish_reason) == ([97] * 5, "length")


def test_an_abort_while_it_compiles_leaves_nothing() -> None:
    core = stand_in_core()
    core.add(add_message(0, [1], params(**KINDS["regex"])))
    core.abort([0])
    assert not core.has_work
    core.add(add_message(1, [1], params(**KINDS["regex"])))
    assert matches("regex", text_of(run_to_end(core)[1]))


def test_a_grammar_that_passes_its_limits_ends_its_request_alone() -> None:
    core = stand_in_core()
    wide = "start: " + " ".join("/(a|b)*/" for _ in range(2000))
    core.add(add_message(0, [1], params(max_tokens=200, grammar=wide)))
    core.add(add_message(1, [1], params(**KINDS["regex"])))
    outputs = run_to_end(core)
    last = outputs[0][-1]
    assert last.finish_reason == "error"
    assert (last.error, last.field_at_fault) == (GRAMMAR_FAILED, "structured_outputs")
    assert matches("regex", text_of(outputs[1]))


def test_what_does_not_compile_is_the_requests_fault() -> None:
    core = stand_in_core()
    core.add(add_message(0, [1], params(regex="(a")))
    (output,) = run_to_end(core)[0]
    assert (output.finish_reason, output.field_at_fault) == ("error", "structured_outputs")


def constraint(**fields: Any) -> Constraint:
    found = constraint_of(SamplingParams(**fields), 259, None)
    assert found is not None
    return found


def test_only_allowed_tokens_come() -> None:
    core = stand_in_core()
    core.add(add_message(0, [1], SamplingParams(max_tokens=50, allowed_token_ids=(7, 31, 200))))
    tokens = tokens_of(run_to_end(core)[0])
    assert set(tokens) <= {7, 31, 200}
    assert len(tokens) == 50


def test_a_bad_word_never_comes_unless_nothing_else_may() -> None:
    words = constraint(allowed_token_ids=(31, 32, 63), bad_words_token_ids=((31,), (32, 63)))
    assert ids(words, []) == [32, 63]
    assert ids(words, [32]) == [32]
    assert ids(words, [63, 32, 32]) == [32]
    assert ids(constraint(allowed_token_ids=(31,), bad_words_token_ids=((31,),)), []) == [31]


def ids(found: Constraint, output: list[int]) -> list[int]:
    flags = np.unpackbits(found.allowed(output).view(np.uint8), bitorder="little")
    return [int(i) for i in np.flatnonzero(flags)]


@pytest.mark.parametrize("seed", range(6))
def test_both_samplers_agree_on_constrained_rows(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 259, generator=generator)
    outputs: list[list[int]] = [[], [104], [1, 2], [], [9]]

    def states() -> list[SamplingState]:
        fields: list[dict[str, Any]] = [
            {"allowed_token_ids": (5, 200, 258)},
            {"bad_words_token_ids": ((104, 105), (7,))},
            {},
            {"allowed_token_ids": (258,), "min_tokens": 9, "logit_bias": {3: 50.0}},
            {"allowed_token_ids": (1, 258), "min_tokens": 9, "presence_penalty": 1.0},
        ]
        made = [SamplingParams(seed=seed + i, **f) for i, f in enumerate(fields)]
        return [sampling_state(p, [1], (258,), constraint_of(p, 259, None)) for p in made]

    tokens = sample(logits, states(), outputs)
    device = torch.device("cpu")
    assert GpuSampler(259, device, use_kernels=False)(logits, states(), outputs).tolist() == tokens
    assert tokens[0] in (5, 200, 258)
    assert tokens[3:] == [258, 1]


def test_hostile_grammars_are_refused_or_run_in_little_time() -> None:
    """Each beside a good request, which must come through."""
    core = stand_in_core(stand_in_config(num_pages=2048, max_model_len=512))
    nested = '{"type": "array", "items": ' * 2000 + "true" + "}" * 2000
    hostile: list[dict[str, Any]] = [
        {"regex": "((a{0,1000}){0,1000}){0,1000}"},
        {"regex": r"(\w{1,500}\s){1,500}"},
        {"regex": "(a|b|c)*a(a|b|c){40}"},
        {"regex": "|".join(f"{i}(.*{i}){{5}}" for i in range(300))},
        {"grammar": 'start: a\na: a a | "x" | a a a'},
        {"grammar": 'start: start "a"'},
        {"grammar": "start: T\nT: /(.*a){10}/ & /(.*b){10}/ & /(.*c){10}/ & ~/(.*d){10}/"},
        {"grammar": "start: " + " ".join("/(a|b)*/" for _ in range(2000))},
        {"choice": tuple(map(str, range(100_000)))},
        {"json": {"enum": list(range(100_000))}},
        {"json": nested},
        {"json": {"$ref": "http://127.0.0.1:9/schema"}},
        {"json": {"allOf": [{"anyOf": [{"minLength": i}] * 5} for i in range(50)]}},
    ]
    began = time.process_time()
    for i, kind in enumerate(hostile):
        core.add(add_message(i, [i], params(max_tokens=20, **kind)))
    core.add(add_message(99, [1], params(**KINDS["regex"])))
    outputs = run_to_end(core)
    assert matches("regex", text_of(outputs[99]))
    assert all(outputs[i][-1].finish_reason is not None for i in range(len(hostile)))
    assert time.process_time() - began < 10
