"""Where results may go, and what is refused."""

import os
from pathlib import Path

import pytest

from nsa_serve.batch.reading import InputFile
from nsa_serve.batch.writing import OutputFile
from nsa_serve.errors import BatchError
from tests.support.batches import line, run

LINE = b'{"id":"batch_req_00","custom_id":"a","response":null,"error":null}\n'


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    for name in ("link", "dangling"):
        with pytest.raises(BatchError, match="symbolic link"):
            OutputFile(tmp_path / name, resume=True)
    assert not (tmp_path / "none").exists()


def test_a_folder_a_device_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, Path(os.devnull), tmp_path / "none" / "out"):
        with pytest.raises(BatchError, match=str(path)):
            OutputFile(path, resume=False)
    with pytest.raises(BatchError, match="is a folder"):
        InputFile(tmp_path)
    with pytest.raises(BatchError, match="No such file"):
        InputFile(tmp_path / "none")


def test_a_file_that_holds_something_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(LINE)
    with pytest.raises(BatchError, match="--resume"):
        OutputFile(path, resume=False)
    assert path.read_bytes() == LINE


@pytest.mark.parametrize("data", [b"my notes", b"my notes\n", LINE + b"{}\n", b"{}\n" + LINE])
def test_a_file_that_is_no_output_is_kept(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(data)
    with pytest.raises(BatchError, match="no result of a batch"):
        OutputFile(path, resume=True)
    assert path.read_bytes() == data


def test_one_run_writes_at_a_time(tmp_path: Path) -> None:
    with (
        OutputFile(tmp_path / "out", resume=False),
        pytest.raises(BatchError, match="another run"),
    ):
        OutputFile(tmp_path / "out", resume=True)
    with OutputFile(tmp_path / "out", resume=True):
        pass


def test_results_are_the_owners_alone(tmp_path: Path) -> None:
    (tmp_path / "in").write_bytes(line("a"))
    run(tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o600
