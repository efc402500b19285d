"""What a server says of itself once it serves."""

import shlex

import msgspec
import pytest

from nsa_api.announcement import announcement
from nsa_api.settings import ApiSettings
from nsa_serve.engine.messages import Ready

INFO = Ready(
    model_name="it's a model",
    max_model_len=8192,
    vocab_size=259,
    eos_token_ids=[256],
    num_pages=64,
    page_size=16,
    device="cpu",
    dtype="int8",
    attention="nsa",
    report="cache 1.00 GiB",
    max_num_seqs=8,
)


def told(settings: ApiSettings, host: str = "127.0.0.1") -> list[str]:
    return announcement(INFO, settings, (host, 8000), "after 1 s").splitlines()


def test_one_look_says_what_is_served_where() -> None:
    model, cache, ready, page, api, _ = told(ApiSettings())
    assert model == (
        "it's a model: nsa attention, int8 on cpu, context 8,192, up to 8 sequences at once"
    )
    assert cache == "cache 1.00 GiB"
    assert ready == "nsa-serve is ready at http://127.0.0.1:8000 after 1 s"
    assert page.endswith("http://127.0.0.1:8000/")
    assert "http://127.0.0.1:8000/v1" in api


@pytest.mark.parametrize(
    ("settings", "name", "key"),
    [
        (ApiSettings(), "it's a model", False),
        (ApiSettings(served_model_names=("a", "b"), api_keys=("secret",)), "a", True),
    ],
)
def test_what_to_try_is_a_command_that_a_shell_reads(
    settings: ApiSettings, name: str, key: bool
) -> None:
    line = told(settings)[-1]
    words = shlex.split(line)
    assert words[:3] == ["try", "curl", "http://127.0.0.1:8000/v1/completions"]
    body = msgspec.json.decode(words[words.index("-d") + 1])
    assert (body["model"], "Authorization: Bearer KEY" in words) == (name, key)
    assert "secret" not in "".join(told(settings))


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("0.0.0.0", "http://127.0.0.1:8000"),
        ("::", "http://[::1]:8000"),
        ("10.1.2.3", "http://10.1.2.3:8000"),
    ],
)
def test_addresses_that_others_reach_are_told_with_what_that_means(host: str, url: str) -> None:
    lines = told(ApiSettings(host=host), host)
    assert lines[3].split() == ["page", f"{url}/"]
    assert "no --api-key" in lines[-1]
    assert "no --api-key" not in told(ApiSettings(host=host, api_keys=("k",)), host)[-1]
