"""Files that end: at the start, when somebody asks, but not under a batch that reads them."""

import time
from pathlib import Path

import msgspec
import pytest

from nsa_api.batches.records import BatchRecord, FileRecord, new_id
from nsa_api.batches.store import Store

DAY = 86_400


def opened(folder: Path) -> Store:
    return Store(folder, max_bytes=1 << 20, max_seconds=30 * DAY)


def kept(store: Store, seconds_left: int, *, told: bool = True) -> FileRecord:
    """A file that has so many seconds left, by what it says or by our own bound."""
    now = int(time.time())
    file = FileRecord(
        id=new_id("file-"),
        bytes=3,
        created_at=now if told else now + seconds_left - 30 * DAY,
        expires_at=now + seconds_left if told else None,
        filename="a",
        purpose="batch",
    )
    store.content(file.id).write_bytes(b"{}\n")
    store.save(file)
    return file


def remains(store: Store, file: FileRecord) -> list[str]:
    """Names on disk that are of this file."""
    return sorted(path.name for path in (store.folder / "files").glob(f"{file.id}*"))


@pytest.mark.parametrize("told", [True, False])
def test_what_has_expired_goes_at_the_start(tmp_path: Path, told: bool) -> None:
    store = opened(tmp_path)
    over, good = kept(store, 0, told=told), kept(store, 100, told=told)
    store.close()
    store = opened(tmp_path)
    assert list(store.files) == [good.id]
    assert remains(store, over) == []
    assert len(remains(store, good)) == 2
    store.close()


def test_what_has_expired_goes_when_it_is_asked_for(tmp_path: Path) -> None:
    store = opened(tmp_path)
    files = [kept(store, 0), kept(store, 0), kept(store, 100)]
    assert store.find_file(files[0].id) is None
    assert remains(store, files[0]) == []
    assert store.live_files() == [files[2]]
    assert remains(store, files[1]) == []
    assert store.find_file(files[2].id) == files[2]
    store.close()


def test_a_batch_reads_its_input_to_the_end(tmp_path: Path) -> None:
    store = opened(tmp_path)
    file = kept(store, 0)
    batch = BatchRecord(
        id=new_id("batch_"),
        endpoint="/v1/completions",
        input_file_id=file.id,
        completion_window="24h",
        created_at=int(time.time()),
        expires_at=int(time.time()) + DAY,
    )
    store.save(batch)
    assert store.find_file(file.id) is None
    assert store.live_files() == []
    assert len(remains(store, file)) == 2
    batch.turn("completed", int(time.time()))
    store.save(batch)
    store.drop_old()
    assert remains(store, file) == []
    store.close()


def test_nothing_is_kept_longer_than_the_server_keeps_anything(tmp_path: Path) -> None:
    store = opened(tmp_path)
    assert store.expiry(1000, None) == store.expiry(1000, 40 * DAY) == 1000 + 30 * DAY
    assert store.expiry(1000, 3600) == 4600
    store.close()


def test_ids_are_in_the_order_of_their_making() -> None:
    ids = []
    for _ in range(200):
        ids.append(new_id("file-"))
        time.sleep(2e-6)
    assert ids == sorted(set(ids))
    assert {len(name) for name in ids} == {len("file-") + 32}


def test_a_record_tells_when_it_ends(tmp_path: Path) -> None:
    store = opened(tmp_path)
    file = kept(store, 100)
    store.close()
    written = msgspec.json.decode((tmp_path / "files" / f"{file.id}.json").read_bytes())
    assert written["expires_at"] == file.expires_at
