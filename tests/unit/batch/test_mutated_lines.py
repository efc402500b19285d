"""Whatever a line holds, it gets one result, which is JSON and no 5xx, and the others theirs."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nsa_serve.batch.reading import InputFile
from tests.support.batches import CHAT_URL, KnownEngine, line, records, run
from tests.support.mutations import edits, mutated

GOOD = [
    line("a", max_tokens=5, stop=["x"], seed=7),
    line("b", url=CHAT_URL, max_tokens=5, logit_bias={"1": 1}),
    line("c", prompt=[[1, 2], [3]], n=2, max_tokens=4, temperature=0.5),
]
SPOILT = st.sampled_from(GOOD).flatmap(
    lambda good: edits(good).map(lambda changes: mutated(good, changes).rstrip(b"\n") + b"\n")
)
LINES = 25


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [4, pytest.param(200, marks=pytest.mark.slow)])
def test_any_mutation_of_lines(tmp_path: Path, count: int) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
    )
    @given(st.lists(SPOILT, min_size=LINES, max_size=LINES))
    def check(spoilt: list[bytes]) -> None:
        source.write_bytes(line("first") + b"".join(spoilt) + line("last"))
        target.unlink(missing_ok=True)
        run(source, target, KnownEngine())
        with InputFile(source) as read:
            num_lines = sum(1 for _ in read.lines())
        found = records(target)
        assert len(found) == num_lines
        by_id = {result["custom_id"]: result["response"] for result in found}
        assert by_id["first"]["status_code"] == by_id["last"]["status_code"] == 200
        answered = [result["response"] for result in found if result["response"] is not None]
        assert all(response["status_code"] in (200, 400, 404) for response in answered)
        assert all(result["error"]["line"] for result in found if result["response"] is None)

    check()
