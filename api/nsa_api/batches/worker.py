"""Works through the batches of a store, one after the other, and goes on after a restart."""

import asyncio
import logging
import time
from contextlib import suppress
from pathlib import Path

from fastapi import FastAPI

from nsa_api.batches.online import OnlineApi
from nsa_api.batches.parting import part_results
from nsa_api.batches.records import (
    UNFINISHED,
    BatchFault,
    BatchFaults,
    BatchRecord,
    FileRecord,
    RequestCounts,
    stamp,
)
from nsa_api.batches.store import Store
from nsa_api.settings import ApiSettings
from nsa_serve.batch.reading import InputFile
from nsa_serve.batch.running import BatchRun, Progress
from nsa_serve.batch.writing import OutputFile
from nsa_serve.errors import BatchError

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_SWEEPS = 60.0


def open_worker(app: FastAPI, settings: ApiSettings) -> "BatchWorker | None":
    """What works through the batches in the settings' folder, if they name one.

    Raises `BatchError` if it cannot be had.
    """
    if settings.batch_dir is None:
        return None
    store = Store(
        Path(settings.batch_dir),
        max_bytes=settings.max_batch_dir_bytes,
        max_seconds=settings.batch_days * 86_400,
    )
    return BatchWorker(store, app)


class BatchWorker:
    """One task of the event loop that first called `start`."""

    def __init__(self, store: Store, app: FastAPI) -> None:
        self.store, self._app = store, app
        self._news = asyncio.Event()
        self._work: asyncio.Task[None] | None = None
        self._sweeper: asyncio.Task[None] | None = None
        self._current: tuple[str, asyncio.Task[Progress]] | None = None
        self._stopping = False

    def start(self) -> None:
        """Work from now on; of no effect if it does."""
        self._news.set()
        if self._work is None:
            self._work = asyncio.create_task(self._serve())
            self._sweeper = asyncio.create_task(self._sweep())

    async def stop(self) -> None:
        """Leave what is in work to the next server."""
        self._stopping = True
        tasks = [task for task in (self._work, self._sweeper) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.store.close()

    def cancel(self, batch: BatchRecord) -> None:
        """End a batch; what it has is kept."""
        batch.turn("cancelling", int(time.time()))
        self.store.save(batch)
        if self._current is not None and self._current[0] == batch.id:
            self._current[1].cancel()
        self.start()

    async def _serve(self) -> None:
        while True:
            self._news.clear()
            for batch in self.store.unfinished():
                try:
                    await self._answer(batch)
                except (BatchError, OSError) as error:
                    self._fail(batch, "failed", str(error))
                except Exception:
                    logger.exception("batch %s failed unexpectedly", batch.id)
                    self._fail(batch, "internal_error", "Internal server error")
            await self._news.wait()

    async def _sweep(self) -> None:
        """Forget what is over, whether or not anybody asks for it again."""
        while True:
            await asyncio.sleep(_SECONDS_BETWEEN_SWEEPS)
            try:
                self.store.drop_old()
            except OSError as error:
                logger.warning("an expired file could not be removed: %s", error)

    async def _answer(self, batch: BatchRecord) -> None:
        source = self.store.content(batch.input_file_id)
        if batch.status == "validating":
            total = await asyncio.to_thread(_count_lines, source)
            if not total:
                self._fail(batch, "empty_file", "The input file holds no request")
                return
            batch.request_counts.total = total
            if batch.status == "validating":  # it may have been cancelled meanwhile
                batch.turn("in_progress", int(time.time()))
                self.store.save(batch)
        expired = False
        if batch.status == "in_progress":
            expired = await self._run(batch, source)
        await self._finish(batch, expired)

    async def _run(self, batch: BatchRecord, source: Path) -> bool:
        """Answer what can be answered; whether time ran out."""
        target = self.store.partial(batch.id)
        api = OnlineApi(self._app, salt=bytes.fromhex(batch.owner))

        def report(progress: Progress) -> None:
            counts = batch.request_counts
            counts.completed = progress.num_completed + progress.num_skipped
            counts.failed = progress.num_failed

        await api.ready()
        written = await asyncio.to_thread(OutputFile, target, resume=True)
        with written as write, InputFile(source) as read:
            run = BatchRun(
                read,
                write,
                api,
                created=batch.created_at,
                endpoints=(batch.endpoint,),
                report=report,
            )
            task = asyncio.create_task(run.run())
            self._current = batch.id, task
            try:
                await asyncio.wait((task,), timeout=max(0.0, batch.expires_at - time.time()))
                expired = not task.done()
            finally:
                self._current = None
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            if not task.cancelled():
                task.result()
            return expired

    async def _finish(self, batch: BatchRecord, expired: bool) -> None:
        """Part the results into answers and failures, as files of their own."""
        cancelled = batch.status == "cancelling"
        if batch.status == "in_progress":
            batch.turn("finalizing", int(time.time()))
            self.store.save(batch)
        made_at = (batch.cancelling_at if cancelled else batch.finalizing_at) or batch.created_at
        partial = self.store.partial(batch.id)
        # The same names after a crash: what it left is written over.
        name = f"file-{stamp(made_at * 1_000_000)}{batch.id[-18:]}"
        names = [f"{name}{end}" for end in ("a", "b")]
        paths = [self.store.content(name) for name in names]
        counts = batch.request_counts
        parted = await asyncio.to_thread(part_results, partial, *paths)
        counts.completed, counts.failed = parted.completed, parted.failed
        batch.model, batch.usage = parted.model, parted.usage
        if counts.completed:
            batch.output_file_id = self._add(names[0], batch, made_at, "output")
        if counts.failed:
            batch.error_file_id = self._add(names[1], batch, made_at, "error")
        ended = time.time()
        batch.turn("cancelled" if cancelled else "expired" if expired else "completed", int(ended))
        self.store.save(batch)
        for path in (partial, *(path for path in paths if path.stem not in self.store.files)):
            path.unlink(missing_ok=True)

    def _add(self, file_id: str, batch: BatchRecord, made_at: int, kind: str) -> str:
        record = FileRecord(
            id=file_id,
            bytes=self.store.content(file_id).stat().st_size,
            created_at=made_at,
            expires_at=self.store.expiry(made_at, batch.output_seconds),
            filename=f"{batch.id}_{kind}.jsonl",
            purpose="batch_output",
            owner=batch.owner,
        )
        self.store.save(record)
        return file_id

    def _fail(self, batch: BatchRecord, code: str, message: str) -> None:
        if batch.status in UNFINISHED and not self._stopping:
            batch.errors = BatchFaults([BatchFault(code, message)])
            batch.request_counts = RequestCounts(batch.request_counts.total)
            batch.turn("failed", int(time.time()))
            with suppress(BatchError):
                self.store.save(batch)


def _count_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for line in file if line.strip())
