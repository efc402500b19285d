"""What a run says of itself where standard error is no terminal."""

import pytest

from nsa_serve.batch import progress
from nsa_serve.batch.progress import BatchBar, first_failure
from nsa_serve.batch.running import Progress


def test_a_line_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = Progress(num_completed=1200, num_failed=3, num_tokens=10, num_bytes=250)
    with BatchBar(1000) as bar:
        bar.show(now)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", -1.0)
    for num_bytes, begin in ((1000, "25%, 1,200 answered, "), (None, "1,200 answered, ")):
        with BatchBar(num_bytes) as bar:
            bar.show(now)
        said = capsys.readouterr().err
        assert said.startswith(begin)
        assert said.endswith("tokens/s, 3 failed\n")
        assert said.count("\n") == 1


def test_the_summary_of_a_run_that_was_resumed() -> None:
    with BatchBar(None) as bar:
        said = bar.summary(Progress(num_completed=1200, num_skipped=8, num_tokens=10))
    assert said.startswith("1,200 answered, 0 failed, 8 were there before, 10 tokens in ")


def test_a_failure_is_safe_to_print() -> None:
    assert first_failure(Progress()) == ""
    said = first_failure(Progress(first_failure="line 3: no \x1b[2J\r\n such " + "x" * 500))
    assert said.startswith("the first that failed, line 3: no  [2J   such xxx")
    assert len(said) < 300
