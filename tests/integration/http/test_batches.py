"""The Batch API by the unmodified openai package, over a folder that outlives the server."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from openai.types import Batch

from tests.support.batches import CHAT_URL, URL, line
from tests.support.command_line import expected_text
from tests.support.http_server import ServerProcess, run_server

ENDPOINT: Any = URL
KEY, OTHER_KEY = "a-key", "another-key"
Fields = dict[str, Any]
SLOW = {"step_seconds": 0.03}


@contextmanager
def serving(
    folder: Path, *, stand_in: Fields | None = None, **settings: Any
) -> Iterator[tuple[ServerProcess, openai.OpenAI]]:
    settings = {"api_keys": [KEY, OTHER_KEY], "batch_dir": str(folder), **settings}
    with (
        run_server(settings=settings, engine={"max_num_seqs": 8}, stand_in=stand_in) as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client,
    ):
        yield server, client


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with serving(tmp_path_factory.mktemp("batches"), max_file_bytes=1 << 20) as (server, _):
        yield server


@pytest.fixture
def client(server: ServerProcess) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


def lines(count: int, **fields: Any) -> bytes:
    fields = {"model": "stand-in", "max_tokens": 20, **fields}
    return b"".join(line(f"r{i}", **fields) for i in range(count))


def begin(client: openai.OpenAI, data: bytes, endpoint: Any = URL) -> Batch:
    file = client.files.create(file=("requests.jsonl", data), purpose="batch")
    return client.batches.create(
        input_file_id=file.id,
        endpoint=endpoint,
        completion_window="24h",
        metadata={"name": "a test"},
    )


def wait(client: openai.OpenAI, batch: Batch, until: Callable[[Batch], bool]) -> Batch:
    deadline = time.monotonic() + 60
    while not until(batch):
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
        batch = client.batches.retrieve(batch.id)
    return batch


def ended(batch: Batch) -> bool:
    return batch.status in ("completed", "failed", "cancelled", "expired")


def results(client: openai.OpenAI, file_id: str | None) -> dict[str, dict[str, Any]]:
    assert file_id is not None
    found = [msgspec.json.decode(text) for text in client.files.content(file_id).iter_lines()]
    by_id = {result["custom_id"]: result for result in found}
    assert len(by_id) == len(found)
    return by_id


def test_a_file_goes_there_and_back(client: openai.OpenAI) -> None:
    data = lines(3)
    file = client.files.create(file=("my requests.jsonl", data), purpose="batch")
    assert (file.bytes, file.filename, file.purpose) == (len(data), "my requests.jsonl", "batch")
    assert client.files.content(file.id).read() == data
    assert client.files.retrieve(file.id) == file
    assert file.id in [other.id for other in client.files.list()]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_a_batch_is_answered(client: openai.OpenAI) -> None:
    data = lines(30) + b"nonsense\n" + line("bad", model="stand-in", max_tokens=0)
    batch = begin(client, data + line("chat", url=CHAT_URL))
    assert batch.status == "validating"
    batch = wait(client, batch, ended)
    assert batch.status == "completed"
    counts = batch.request_counts
    assert counts is not None
    assert (counts.total, counts.completed, counts.failed) == (33, 30, 3)
    assert batch.metadata == {"name": "a test"}
    good = results(client, batch.output_file_id)
    assert {
        custom_id: result["response"]["body"]["choices"][0]["text"]
        for custom_id, result in good.items()
    } == {f"r{i}": expected_text(f"r{i}", 20) for i in range(30)}
    usage = batch.usage
    assert usage is not None
    assert (batch.model, usage.output_tokens) == ("stand-in", 30 * 20)
    assert usage.input_tokens == sum(len(f"r{i}") for i in range(30))
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    bad = results(client, batch.error_file_id)
    assert bad[None]["error"]["code"] == "invalid_json_line"  # type: ignore[index]
    assert bad["bad"]["response"]["status_code"] == 400
    assert bad["chat"]["error"]["code"] == "invalid_url"


def test_a_chat_batch_is_answered(client: openai.OpenAI) -> None:
    data = line("a", url=CHAT_URL, model="stand-in", max_tokens=5)
    batch = wait(client, begin(client, data, CHAT_URL), ended)
    assert results(client, batch.output_file_id)["a"]["response"]["status_code"] == 200
    assert batch.error_file_id is None


def test_a_batch_without_requests_fails(client: openai.OpenAI) -> None:
    batch = wait(client, begin(client, b"\n\n"), ended)
    assert batch.status == "failed"
    assert batch.errors is not None
    assert batch.errors.data is not None
    assert batch.errors.data[0].code == "empty_file"


def test_lists_come_in_pages(client: openai.OpenAI) -> None:
    made = [begin(client, lines(1)).id for _ in range(3)]
    listed = [batch.id for batch in client.batches.list(limit=2)]
    assert set(made) <= set(listed)
    assert len(listed) == len(set(listed))
    assert len(client.batches.list(limit=2).data) == 2


def test_lists_are_in_the_order_of_time(client: openai.OpenAI) -> None:
    files = [client.files.create(file=(f"{i}", lines(1)), purpose="batch").id for i in range(5)]
    newest = [file.id for file in client.files.list(purpose="batch").data[:5]]
    assert newest == files[::-1]
    after = client.files.list(after=files[1], order="asc", limit=2)
    assert [file.id for file in after.data] == files[2:4]
    assert [file.id for file in client.files.list(after=files[2], limit=2).data] == files[1::-1]


def test_a_list_may_be_deleted_while_it_is_read(server: ServerProcess) -> None:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=OTHER_KEY, max_retries=0) as other:
        for _ in range(5):
            other.files.create(file=("a", lines(1)), purpose="batch")
        assert sum(other.files.delete(f.id).deleted for f in other.files.list(limit=2)) == 5
        assert not list(other.files.list())


def test_files_end_when_the_client_says(client: openai.OpenAI) -> None:
    create = client.files.with_raw_response.create
    named = create(
        file=("a", lines(1)),
        purpose="batch",
        expires_after={"anchor": "created_at", "seconds": 3600},
        extra_body={"colour": "red"},
    )
    assert named.headers["X-Ignored-Fields"] == "colour"
    file = named.parse()
    assert file.expires_at == file.created_at + 3600
    assert client.files.retrieve(file.id) == file
    unnamed = create(file=("a", lines(1)), purpose="batch")
    assert "X-Ignored-Fields" not in unnamed.headers
    assert unnamed.parse().expires_at == unnamed.parse().created_at + 30 * 86_400
    before = len(client.files.list().data)
    bad: list[Any] = [{"anchor": "created_at", "seconds": s} for s in (3599, 2_592_001, "1e4", "")]
    for fields in (*bad, {"anchor": "now", "seconds": 3600}, {"anchor": "created_at"}):
        with pytest.raises(openai.BadRequestError, match="expires_after"):
            client.files.create(file=("a", lines(1)), purpose="batch", expires_after=fields)
    assert len(client.files.list().data) == before


def test_what_a_batch_makes_ends_when_the_client_says(client: openai.OpenAI) -> None:
    file = client.files.create(file=("a", lines(1) + b"nonsense\n"), purpose="batch")
    make = client.batches.with_raw_response.create
    made = make(
        input_file_id=file.id,
        endpoint=ENDPOINT,
        completion_window="24h",
        output_expires_after={"anchor": "created_at", "seconds": 7200},
    )
    assert "X-Ignored-Fields" not in made.headers
    assert "output_seconds" not in made.text
    batch = wait(client, made.parse(), ended)
    for file_id in (batch.output_file_id, batch.error_file_id):
        assert file_id is not None
        output = client.files.retrieve(file_id)
        assert output.expires_at == output.created_at + 7200
        assert output.purpose == "batch_output"
    for seconds in (3599, 2_592_001):
        with pytest.raises(openai.BadRequestError, match="output_expires_after"):
            make(
                input_file_id=file.id,
                endpoint=ENDPOINT,
                completion_window="24h",
                output_expires_after={"anchor": "created_at", "seconds": seconds},
            )


def test_a_file_that_has_expired_is_gone(tmp_path: Path) -> None:
    with serving(tmp_path, batch_days=2 / 86_400) as (_, client):
        files = [client.files.create(file=("a", lines(1)), purpose="batch") for _ in range(2)]
        content = [tmp_path / "files" / f"{file.id}.jsonl" for file in files]
        ends = files[1].expires_at
        assert ends is not None
        while time.time() < ends:
            time.sleep(0.05)
        for call in (client.files.retrieve, client.files.content, client.files.delete):
            with pytest.raises(openai.NotFoundError):
                call(files[0].id)
        with pytest.raises(openai.NotFoundError):
            client.batches.create(
                input_file_id=files[0].id, endpoint=ENDPOINT, completion_window="24h"
            )
        assert [path.exists() for path in content] == [False, True]
        assert not list(client.files.list())
        assert not content[1].exists()


def test_nobody_sees_what_another_key_has(server: ServerProcess, client: openai.OpenAI) -> None:
    batch = wait(client, begin(client, lines(1)), ended)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=OTHER_KEY, max_retries=0) as other:
        for file_id in (batch.input_file_id, batch.output_file_id):
            assert file_id is not None
            for call in (other.files.retrieve, other.files.content, other.files.delete):
                with pytest.raises(openai.NotFoundError):
                    call(file_id)
        for ask in (other.batches.retrieve, other.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                ask(batch.id)
        assert not list(other.files.list())
        assert not list(other.batches.list())
        with pytest.raises(openai.NotFoundError):
            other.batches.create(
                input_file_id=batch.input_file_id,
                endpoint="/v1/completions",
                completion_window="24h",
            )


def test_bad_uploads_are_refused(server: ServerProcess, client: openai.OpenAI) -> None:
    before = {file.id for file in client.files.list()}
    with pytest.raises(openai.APIStatusError) as too_large:
        client.files.create(file=("a", b"x" * (2 << 20)), purpose="batch")
    assert too_large.value.status_code == 413
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.files.create(file=("a", lines(1)), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match="empty"):
        client.files.create(file=("a", b""), purpose="batch")
    key = {"Authorization": f"Bearer {KEY}"}
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    for body, headers, status in (
        (b"{}", {"Content-Type": "application/json"}, 415),
        (b"{}", {"Content-Type": "multipart/form-data"}, 415),
        (b"nonsense", form, 400),
        (b"--x\r\n\r\n", form, 400),
        (b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc', form, 400),
        (b"--x--\r\n", form, 400),
    ):
        answer = server.http.post("/v1/files", content=body, headers={**key, **headers})
        assert answer.status_code == status, (body, answer.text)
    assert {file.id for file in client.files.list()} == before


def test_bad_batches_are_refused(server: ServerProcess, client: openai.OpenAI) -> None:
    file = client.files.create(file=("a", lines(1)), purpose="batch")
    good = {"input_file_id": file.id, "endpoint": URL, "completion_window": "24h"}
    key = {"Authorization": f"Bearer {KEY}"}
    for change, status in (
        ({"input_file_id": "file-../../etc/passwd"}, 404),
        ({"endpoint": "/v1/embeddings"}, 400),
        ({"completion_window": "soon"}, 400),
        ({"completion_window": "0h"}, 400),
        ({"metadata": {"a": 1}}, 400),
        ({"metadata": {str(i): "" for i in range(17)}}, 400),
    ):
        answer = server.http.post("/v1/batches", json={**good, **change}, headers=key)
        assert answer.status_code == status, (change, answer.text)
    for path in ("/v1/batches?limit=0", "/v1/batches?after=x", "/v1/files?limit=a"):
        assert server.http.get(path, headers=key).status_code == 400


def test_it_survives_a_kill(tmp_path: Path) -> None:
    with serving(tmp_path, stand_in=SLOW) as (server, client):
        batch = begin(client, lines(40))
        batch = wait(client, batch, lambda b: bool(b.request_counts and b.request_counts.completed))
        server.process.kill()
        server.wait(10)
    partial = tmp_path / "batches" / f"{batch.id}.jsonl"
    assert 0 < partial.read_bytes().count(b"\n") < 40
    with serving(tmp_path) as (server, client):
        batch = wait(client, client.batches.retrieve(batch.id), ended)
        assert batch.status == "completed"
        assert len(results(client, batch.output_file_id)) == 40
        server.signal()
        assert server.wait(20) == 0


def test_a_cancelled_batch_keeps_what_it_has(tmp_path: Path) -> None:
    with serving(tmp_path, stand_in=SLOW) as (_, client):
        batch = begin(client, lines(200))
        waiting = begin(client, lines(5))
        batch = wait(client, batch, lambda b: bool(b.request_counts and b.request_counts.completed))
        with pytest.raises(openai.BadRequestError, match="cancel it first"):
            client.files.delete(batch.input_file_id)
        assert client.batches.cancel(waiting.id).status == "cancelling"
        assert client.batches.cancel(batch.id).status in ("cancelling", "cancelled")
        batch = wait(client, batch, ended)
        assert batch.status == "cancelled"
        assert 0 < len(results(client, batch.output_file_id)) < 200
        waiting = wait(client, waiting, ended)
        assert (waiting.status, waiting.output_file_id) == ("cancelled", None)
        with pytest.raises(openai.BadRequestError):
            client.batches.cancel(batch.id)


def test_interactive_requests_go_first(tmp_path: Path) -> None:
    with serving(tmp_path, stand_in=SLOW) as (_, client):
        batch = begin(client, lines(400, max_tokens=30))
        wait(client, batch, lambda b: b.status == "in_progress")
        time.sleep(1.0)
        began = time.monotonic()
        client.completions.create(model="stand-in", prompt="now", max_tokens=3)
        seconds = time.monotonic() - began
        assert seconds < 30 * SLOW["step_seconds"], "it waited for a batch's request to end"
        client.batches.cancel(batch.id)


def test_a_drain_does_not_wait_for_a_batch(tmp_path: Path) -> None:
    with serving(tmp_path, stand_in=SLOW) as (server, client):
        batch = begin(client, lines(400, max_tokens=100))
        wait(client, batch, lambda b: b.status == "in_progress")
        server.signal()
        assert server.wait(10) == 0
