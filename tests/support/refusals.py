"""Everything that a client must be refused, what it is told, and how docs/http.md says so."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from tests.support.api import COMPLETIONS
from tests.support.raw_requests import (
    FORM,
    HOST,
    JSON,
    KEY,
    both,
    chats,
    completions,
    every,
    get,
    messages,
    nested,
    part,
    post,
    raw,
    structured,
    tool,
    upload,
    without,
)

READ_TIMEOUT = 0.5
"""Seconds, of the server that the requests are sent to."""
MAX_MODEL_LEN = 1000
VOCAB_SIZE = 259
LONG = 1_000_000


@dataclass(frozen=True)
class Refusal:
    """One line of the table: bytes of requests, and the one answer that all of them get."""

    what: str
    status: int
    code: str
    sent: Sequence[bytes]
    headers: dict[str, str] = field(default_factory=dict)
    """Headers that the answer has."""


CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
BANANA = {"type": "object", "properties": {"a": {"type": "banana"}}}
BATCH = {"input_file_id": "file-x", "endpoint": COMPLETIONS, "completion_window": "24h"}
HEAD = b"GET /health HTTP/1.1\r\nConnection: close\r\n" + HOST
CHUNKED = (
    b"POST /v1/completions HTTP/1.1\r\n" + HOST + KEY + JSON + b"Transfer-Encoding: chunked\r\n\r\n"
)
DEEP = b'{"model":"fake","prompt":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
GOOD = b'{"model":"fake","prompt":"x"}'
BEARER = {"www-authenticate": "Bearer"}

REFUSALS = (
    Refusal(
        "no HTTP/1.1, a malformed header, two lengths, a negative one, no `Host` or two",
        400,
        "invalid_http",
        [
            b"hello\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
            HEAD + b"bad header\r\n\r\n",
            HEAD + b"X-Request-Id: a\x00b\r\n\r\n",
            b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"Content-Length: -1\r\n\r\n",
            HEAD + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"GET /health HTTP/1.1\r\n\r\n",
            HEAD + HOST + b"\r\n",
        ],
    ),
    Refusal(
        "a `Host` that is not this server's, where only this machine can connect",
        400,
        "bad_host",
        [
            b"GET /health HTTP/1.1\r\nConnection: close\r\nHost: " + host + b"\r\n\r\n"
            for host in (b"x/a?", b"evil.example", b"localhost.evil.example", b"localhost:1:2")
        ],
    ),
    Refusal(
        "headers of more than 32 KiB, or more than 100 of them; a key of 1 MB",
        431,
        "headers_too_large",
        [
            HEAD + b"X-Long: " + b"x" * 32_760 + b"\r\n\r\n",
            HEAD + b"".join(b"X-%d: 1\r\n" % i for i in range(101)) + b"\r\n",
            *(
                HEAD + name + b": " + b"x" * LONG + b"\r\n\r\n"
                for name in (b"X-Long", b"Authorization", b"X-Request-Id")
            ),
        ],
    ),
    Refusal(
        "a head that has not come after 5 s",
        408,
        "header_timeout",
        [b"G", b"GET /health HTTP/1.1\r\nHost: loc"],
    ),
    Refusal(
        "a body that has not come after 5 s and a second for every 64 KiB",
        408,
        "body_timeout",
        [
            post(COMPLETIONS, b"{" + b" " * 99)[:-98],
            CHUNKED + b"1\r\n{",
            upload(b"{}\n" * 100)[:-98],
        ],
    ),
    Refusal(
        "a body over 8 MiB, with or without Content-Length, or announced by `Expect`",
        413,
        "body_too_large",
        [
            post(COMPLETIONS, b" " * (9 << 20)),
            CHUNKED + (b"100000\r\n" + b" " * 0x100000 + b"\r\n") * 9 + b"0\r\n\r\n",
            post(COMPLETIONS, b" " * (9 << 20), KEY + JSON + b"Expect: 100-continue\r\n")[
                : -9 << 20
            ],
            *completions({"logit_bias": {str(i): 1 for i in range(LONG)}}),
        ],
    ),
    Refusal(
        "another content type, or none",
        415,
        "bad_content_type",
        [
            post(COMPLETIONS, GOOD, KEY + headers)
            for headers in (
                b"",
                b"Content-Type: text/plain\r\n",
                b"Content-Type: application/x-www-form-urlencoded\r\n",
                FORM,
            )
        ]
        + [
            post("/v1/files", b"{}"),
            post("/v1/files", b"", KEY + b"Content-Type: multipart/form-data\r\n"),
        ],
    ),
    Refusal(
        "an encoded body",
        415,
        "bad_content_encoding",
        [post(COMPLETIONS, GOOD, KEY + JSON + b"Content-Encoding: gzip\r\n")],
    ),
    Refusal(
        "no key, a wrong one, one in the query, two; also where there is no such address",
        401,
        "invalid_api_key",
        [
            get("/v1/models", b""),
            get("/v1/models", b"Authorization: Bearer kez\r\n"),
            get("/v1/models", b"Authorization: Basic key\r\n"),
            get("/v1/models", b"Authorization: Bearer " + b"x" * 20_000 + b"\r\n"),
            get("/v1/models?api_key=key&key=key", b""),
            get("/v1/models", KEY + KEY),
            post(COMPLETIONS, GOOD, JSON),
            *(
                get(path, b"")
                for path in (
                    "/v1/../metrics",
                    "//v1/models",
                    "/v1/models%00",
                    "/metrics?",
                    "/nowhere",
                )
            ),
        ],
        BEARER,
    ),
    Refusal(
        "no such address",
        404,
        "not_found",
        [
            *(
                get(path)
                for path in ("/nowhere", "//v1/models", "/v1/../metrics", "/v1/models%00/x")
            ),
            *(get(path) for path in ("/v1/files/file-x", "/v1/batches/batch_x")),
            post("/v1/batches/batch_x/cancel", b"{}"),
            post("/v1/batches", msgspec.json.encode(BATCH)),
        ],
    ),
    Refusal(
        "no such method there; `Allow` names those that there are",
        405,
        "method_not_allowed",
        [
            get(COMPLETIONS),
            get("/v1/models", method="DELETE"),
            get("/health", method="BREW"),
            get("/v1/files", method="PUT"),
        ],
    ),
    Refusal(
        "a body that is no JSON, empty, `null`, a list, followed by anything, or not UTF-8",
        400,
        "invalid_json",
        raw(
            b"hello",
            b"",
            b"null",
            b"[]",
            b'"text"',
            GOOD + b" x",
            GOOD + b"{}",
            b'{"model":"fake","prompt":"\xff"}',
            b"\xef\xbb\xbf" + GOOD,
        ),
    ),
    Refusal(
        "NaN, Infinity, 1e400, 5,000 digits, a lone surrogate, 100,000 levels, in any field",
        400,
        "invalid_json",
        raw(
            b'{"model":"fake","prompt":"\\ud800"}',
            b'{"model":"fake","prompt":"x","temperature":NaN}',
            b'{"model":"fake","prompt":"x","unknown":NaN}',
            b'{"model":"fake","prompt":"x","logit_bias":{"1":NaN}}',
            b'{"model":"fake","prompt":"x","temperature":-Infinity}',
            b'{"model":"fake","prompt":"x","temperature":1e400}',
            b'{"model":"fake","prompt":"x","seed":' + b"9" * 5000 + b"}",
            DEEP,
        ),
    ),
    Refusal(
        "no `model`, `prompt`, `messages`; no `role` in a message, no `type` in a tool",
        400,
        "missing_required_parameter",
        without("model", "prompt", "messages")
        + chats({"messages": [{"content": "x"}]}, {"tools": [{}]}),
    ),
    Refusal(
        "an `X-Request-Timeout` that is no positive number of seconds",
        400,
        "invalid_value",
        [
            post(COMPLETIONS, GOOD, KEY + JSON + b"X-Request-Timeout: %s\r\n" % seconds)
            for seconds in (b"0", b"-1", b"nan", b"inf", b"1e999", b"soon", b"")
        ],
    ),
    Refusal("an unknown `model`", 404, "model_not_found", both({"model": "other"})),
    Refusal(
        "a `model` that is empty or 1 MB",
        400,
        "invalid_value",
        both(*every("model", "", None, 1, "x" * LONG)),
    ),
    Refusal(
        "a text for a number, a bool for an int, a number for a bool",
        400,
        "invalid_value",
        both(
            *every("temperature", "1", True),
            *every("max_tokens", "16", True, 1.5),
            *every("n", True, "1"),
            *every("stream", "yes", 1),
            {"top_k": 1.5},
        ),
    ),
    Refusal(
        "`messages`: none, over 1,024, an unknown role, no or null content, images, sound, files",
        400,
        "invalid_value",
        chats(
            *every("messages", [], None, "Hello", ["Hello"]),
            {"messages": [{"role": "user", "content": "x"}] * 1025},
            *every("messages", [{"role": "wizard", "content": "x"}], [{"role": "user"}]),
            *messages(None, [], 1, [{"type": "text"}]),
            *messages(part("image_url"), part("input_audio"), part("file")),
            {"messages": [{"role": "assistant", "content": None, "tool_calls": []}]},
            {"messages": [{"role": "user", "content": "x", "tool_calls": [CALL]}]},
        ),
    ),
    Refusal(
        "`prompt`: empty, a million texts, mixed, a token id that is negative, 2⁶³ or no token's",
        400,
        "invalid_value",
        completions(
            *every("prompt", "", [], [[]], None, {"text": "x"}, 1, [1.5], [True], ["x", ""]),
            *every("prompt", ["x", 1], [[1], "x"], [-1], [VOCAB_SIZE], [2**63], [2**64]),
            {"prompt": ["x"] * LONG},
        ),
    ),
    Refusal(
        "a prompt that the context, or the cache, does not hold; the message has both numbers",
        400,
        "context_length_exceeded",
        both({"prompt": "x" * (MAX_MODEL_LEN + 1), **messages("x" * MAX_MODEL_LEN)[0]}),
    ),
    Refusal(
        "`max_tokens`, `max_completion_tokens`: 0, −1, 2⁶³; `min_tokens` above it",
        400,
        "invalid_value",
        both(
            *every("max_tokens", 0, -1, 2**63),
            {"max_tokens": 4, "min_tokens": 5},
            {"min_tokens": -1},
        )
        + chats({"max_completion_tokens": 0}),
    ),
    Refusal(
        "`n`: 0, −1, 129, 10⁹; prompts · n over 512",
        400,
        "invalid_value",
        both(*every("n", 0, -1, 129, 10**9)) + completions({"prompt": ["x"] * 5, "n": 128}),
    ),
    Refusal(
        "`temperature` −1, `top_p` 0 or 1.1, `top_k` −2, `min_p` 2; penalties, `seed`, `priority` "
        "out of bounds",
        400,
        "invalid_value",
        both(
            *every("temperature", -1, 101),
            *every("top_p", 0, 1.1),
            *({"top_k": -2}, {"min_p": 2}, {"seed": 2**70}, {"priority": 2**40}),
            *every("presence_penalty", 2.1, -2.1),
            *every("frequency_penalty", 2.1, -2.1),
            *every("repetition_penalty", 0, 101),
        ),
    ),
    Refusal(
        "`logprobs`, `top_logprobs`, `prompt_logprobs`: 21, −1; `top_logprobs` without `logprobs`; "
        "`prompt_logprobs`, or `echo` with `logprobs`, in a stream; over 2¹⁹ values of the prompts",
        400,
        "invalid_value",
        completions(
            *every("logprobs", 21, -1, True),
            *({"echo": 1}, {"echo": True, "logprobs": 0, "stream": True}),
            {"echo": True, "logprobs": 20, "prompt": ["x" * 500] * 4, "n": 128},
        )
        + chats(
            *({"logprobs": True, "top_logprobs": number} for number in (21, -1)),
            *({"logprobs": 1}, {"top_logprobs": 1}),
        )
        + both(*every("prompt_logprobs", 21, -1), {"prompt_logprobs": 1, "stream": True}),
    ),
    Refusal(
        "`logit_bias`: ±101, no token's id, 300,000 of them; `allowed_token_ids`, "
        "`stop_token_ids`: no token's id, none",
        400,
        "invalid_value",
        both(
            *every(
                "logit_bias", {"1": 101}, {"1": -101}, {str(VOCAB_SIZE): 1}, {"-1": 1}, {"one": 1}
            ),
            {"logit_bias": {str(i): 1 for i in range(300_000)}},
            *every("allowed_token_ids", [], [VOCAB_SIZE], [-1]),
            *every("stop_token_ids", [VOCAB_SIZE], [-1]),
        ),
    ),
    Refusal(
        "`stop`: an empty text, 1 MB, 65 texts; `bad_words`: an empty text, 257",
        400,
        "invalid_value",
        both(
            *every("stop", "", ["x", ""], "x" * LONG, ["x"] * 65),
            *every("bad_words", [""], ["x"] * 257, "x"),
        ),
    ),
    Refusal(
        "`stream_options` without `stream`; `cache_salt` empty; `truncate_prompt_tokens` 0, −2",
        400,
        "invalid_value",
        both(
            {"stream_options": {"include_usage": True}},
            {"stream": True, "stream_options": {"include_usage": 1}},
            {"cache_salt": ""},
            *every("truncate_prompt_tokens", 0, -2),
        ),
    ),
    Refusal(
        "schemas of 2,000 levels, 100,000 values, over 64 KiB, of unknown types, "
        "with references to other documents; no schema",
        400,
        "invalid_value",
        both(
            structured(json='{"a":' * 2000 + "1" + "}" * 2000),
            structured(json=nested(100)),
            structured(json={"enum": list(range(100_000))}),
            structured(json={"description": "x" * 70_000}),
            structured(json={"type": "banana"}),
            structured(json={"$ref": "file:///etc/passwd"}),
            *(structured(json=text) for text in ("{", "[1]")),
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "schema": nested(100)},
                }
            },
            *every("response_format", "json", {"type": "xml"}, {"type": "json_schema"}),
        ),
    ),
    Refusal(
        "regexes that are none, match nothing or look around; grammars that recur to the left, "
        "nest 30,000 deep or name special tokens; 2,001 choices, or none",
        400,
        "invalid_value",
        both(
            *(structured(regex=text) for text in ("(a", r"[^\s\S]", "(?=a)b", 5)),
            structured(grammar="{{{"),
            structured(grammar='start: start "a"'),
            structured(grammar="root ::= " + "(" * 30_000),
            structured(grammar="start: <|im_start|>"),
            structured(choice=[]),
            structured(choice=[str(i) for i in range(2001)]),
            structured(structural_tag="x"),
        ),
    ),
    Refusal(
        "two of them at once, or one with `ignore_eos` or `allowed_token_ids`",
        400,
        "invalid_value",
        both(
            structured(regex="a", choice=["a"]),
            {"response_format": {"type": "json_object"}, "guided_regex": "a"},
            {"response_format": {"type": "json_object"}, "ignore_eos": True},
            {"response_format": {"type": "json_object"}, "allowed_token_ids": [1]},
        ),
    ),
    Refusal(
        "`tools`: 1,000, two of one name, control characters in a name, bad schemas; "
        "a `tool_choice` that is not offered",
        400,
        "invalid_value",
        chats(
            *every("tools", {}, [tool(f"f{i}") for i in range(1000)], [tool("f"), tool("f")]),
            *every("tools", [tool("a b")], [tool("a\n")], [tool("a\x00b")], [tool("x" * 65)]),
            *every("tools", [tool(parameters="x")], [tool(parameters={"type": "array"})]),
            *every("tools", [tool(parameters=nested(100))], [tool(parameters=BANANA, strict=True)]),
            {"tools": [tool(parameters=BANANA)], "tool_choice": "required"},
            {"tools": [tool()], "tool_choice": "any"},
            {"tools": [tool()], "tool_choice": tool("g")},
            {"tool_choice": "required"},
        ),
    ),
    Refusal(
        "`suffix`, `best_of`, `chat_template`, `prompt_embeds`, `logits_processors`, "
        "`kv_transfer_params`, `functions`, `audio`, `use_beam_search`, `tools` in a completion",
        400,
        "unsupported_parameter",
        both(
            {"best_of": 2},
            {"chat_template": "{{ x }}"},
            {"prompt_embeds": "AAAA"},
            {"logits_processors": ["x"]},
            {"kv_transfer_params": {}},
            {"functions": [{"name": "f"}]},
            {"audio": {}},
            {"use_beam_search": True},
        )
        + completions({"suffix": "end"}, {"tools": [tool()]}),
    ),
    Refusal(
        "an upload that is no form, or ends early",
        400,
        "invalid_form",
        [post("/v1/files", b"x", KEY + FORM), post("/v1/files", b"---x-\r\n\r\n\r\n", KEY + FORM)],
    ),
    Refusal(
        "an upload that is empty, has another purpose or no file",
        400,
        "invalid_value",
        [upload(b""), upload(b"{}", purpose="fine-tune"), upload(b"{}", name="other")],
    ),
    Refusal(
        "a batch with another endpoint, window or metadata than there are",
        400,
        "invalid_value",
        [
            post("/v1/batches", msgspec.json.encode({**BATCH, **own}))
            for own in (
                {"endpoint": "/v1/embeddings"},
                {"completion_window": "soon"},
                {"metadata": {"x": "y" * 513}},
                {"input_file_id": 1},
            )
        ],
    ),
    Refusal(
        "a list with a `limit`, `order` or `after` that is none",
        400,
        "invalid_value",
        [
            get(f"{path}?{query}")
            for path in ("/v1/files", "/v1/batches")
            for query in ("limit=0", "limit=x", "limit=999999", "order=up", "after=nothing")
        ],
    ),
)
