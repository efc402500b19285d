"""One streamed request, timed."""

import time
from collections.abc import Callable

import aiohttp

from nsa_serve.bench.serve.prompts import Sample
from nsa_serve.bench.serve.records import RequestRecord
from nsa_serve.bench.serve.stream import AnswerReader, StreamError
from nsa_serve.bench.serve.target import Target
from nsa_serve.model.loading.json_file import one_line

Clock = Callable[[], float]
OnTokens = Callable[[int], None]
_SHOWN = 1000


async def ask(
    target: Target, sample: Sample, record: RequestRecord, on_tokens: OnTokens | None = None
) -> None:
    """Send a request and fill in its record, whatever becomes of it; cancelling it is one end.

    `on_tokens` hears how many tokens have come, at each arrival.
    """
    body = target.body(sample)  # before the clock starts
    reader = AnswerReader()
    started = time.perf_counter()
    record.status = "failed"
    try:
        await _read(target, body, reader, record, started, on_tokens)
    except StreamError as error:
        record.error = str(error)
    except TimeoutError:
        record.error = f"no end after {target.options.timeout:g} s"
    except (aiohttp.ClientError, OSError) as error:
        record.error = f"{type(error).__name__}: {one_line(error)}"
    except BaseException:
        record.status = "cancelled"
        raise
    finally:
        _settle(record, reader, sample, time.perf_counter() - started)


async def _read(
    target: Target,
    body: dict[str, object],
    reader: AnswerReader,
    record: RequestRecord,
    started: float,
    on_tokens: OnTokens | None,
) -> None:
    async with target.session.post(target.url, json=body) as answer:
        record.http_status = answer.status
        if answer.status != 200 or answer.content_type != "text/event-stream":
            text = (await answer.content.read(_SHOWN)).decode(errors="replace")
            raise StreamError(f"HTTP {answer.status}: {one_line(text)}")
        counted = 0
        async for received in answer.content.iter_any():
            reader.feed(received, time.perf_counter() - started)
            if on_tokens is not None and reader.num_tokens > counted:
                on_tokens(reader.num_tokens - counted)
                counted = reader.num_tokens
    if not reader.done and reader.finish_reason is None:
        raise StreamError("the stream ended before the answer did")
    record.status = "ok"


def _settle(record: RequestRecord, reader: AnswerReader, sample: Sample, seconds: float) -> None:
    """Take over what the reader collected."""
    record.arrivals, record.token_counts = reader.finish()
    usage = reader.usage
    counted = sum(arrival.num_tokens for arrival in record.arrivals)
    record.output_tokens = usage.completion_tokens or counted
    record.prompt_tokens = usage.prompt_tokens or sample.prompt_tokens
    if usage.prompt_tokens_details is not None:
        record.cached_tokens = usage.prompt_tokens_details.cached_tokens or 0
    record.finish_reason = reader.finish_reason
    record.text = reader.text
    record.end = reader.last_time if record.status == "ok" else seconds
