"""Runs the API: listens at once, loads the model behind, drains on SIGTERM."""

import asyncio
import errno
import faulthandler
import os
import signal
import socket
import time
from types import FrameType

import msgspec
import uvicorn

from nsa_api.announcement import announcement
from nsa_api.app import create_app
from nsa_api.batches.worker import BatchWorker
from nsa_api.protocol import bounded_protocol
from nsa_api.settings import ApiSettings
from nsa_api.state import ServerState
from nsa_api.watchdog import Watchdog
from nsa_serve import event_loop
from nsa_serve.config import EngineConfig
from nsa_serve.engine.client import AsyncEngine
from nsa_serve.errors import ConfigError
from nsa_serve.garbage import keep_all

_POLL_SECONDS = 0.02
_KEEP_ALIVE_SECONDS = 75
"""Clients drop a connection that they do not use after 5 (httpx) to 60 seconds (proxies). Where the
server is the first to, the next request may go into a connection that is being closed."""
_SECONDS_FOR_LAST_WORDS = 1.0
"""After the drain limit: for the streams to send their error event."""


def serve(config: EngineConfig, settings: ApiSettings) -> None:
    """Serve until SIGTERM or SIGINT; returns once drained.

    Raises `ConfigError`, with one line, if the port or the model cannot be had, and
    `EngineDeadError` if the engine process dies while it loads.
    """
    started = time.monotonic()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    # More could never be queued at once: the client would be told to retry for ever.
    sequences = min(settings.max_request_sequences, config.max_num_unfinished)
    settings = msgspec.structs.replace(settings, max_request_sequences=sequences)
    server = _Server(settings, _listen(settings))
    event_loop.run(server.serve_engine(config, started))


class _Server(uvicorn.Server):
    """uvicorn's server, with a drain of our own in place of its exit on a signal."""

    def __init__(self, settings: ApiSettings, listener: socket.socket) -> None:
        app = create_app(None, settings)
        super().__init__(
            uvicorn.Config(
                app,
                http=bounded_protocol(settings.read_timeout),
                ws="none",
                lifespan="off",
                log_level="warning",
                access_log=False,
                server_header=False,
                h11_max_incomplete_event_size=settings.max_header_bytes,
                timeout_keep_alive=_KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=1,
            )
        )
        self._settings = settings
        self._listener = listener
        self._state: ServerState = app.state.server
        self._batches: BatchWorker | None = app.state.batches
        self._stop = asyncio.Event()

    async def serve_engine(self, config: EngineConfig, started: float) -> None:
        """Answer from now on, and serve the engine as soon as it is loaded, to the end."""
        self._loop = asyncio.get_running_loop()
        life = asyncio.create_task(self._live(config, started))
        await self.serve(sockets=[self._listener])
        await life

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain at the first signal, leave at the second; the engine ends with this process."""
        if self._state.draining:
            os._exit(128 + sig)
        self._state.draining = True
        self._loop.call_soon_threadsafe(self._stop.set)

    async def _live(self, config: EngineConfig, started: float) -> None:
        try:
            listening = time.monotonic()
            engine = await self._start_engine(config)
            if engine is not None:
                self._state.attach(engine)
                if self._batches is not None:
                    self._batches.start()
                keep_all()
                self._announce(engine, started, listening)
                watching = asyncio.create_task(Watchdog(self._state, engine).run())
                await self._stop.wait()
                await self._drain(engine)
                watching.cancel()
        finally:
            self.should_exit = True
            if self._state.tracer is not None:
                await asyncio.to_thread(self._state.tracer.close)

    async def _drain(self, engine: AsyncEngine) -> None:
        """Let requests finish; what is left gets an error event when the engine goes.

        Batches do not hold it up: the next server goes on with them.
        """
        if number := self._state.num_in_flight:
            print(
                f"nsa-serve ends: what runs ({number}) may finish within "
                f"{self._settings.shutdown_timeout:g} s, a second signal ends it at once",
                flush=True,
            )
        if self._batches is not None:
            await self._batches.stop()
        await self._wait_until_idle(self._settings.shutdown_timeout)
        await engine.shutdown()
        await self._wait_until_idle(_SECONDS_FOR_LAST_WORDS)

    def _announce(self, engine: AsyncEngine, started: float, listening: float) -> None:
        ready = time.monotonic()
        took = (
            f"after {ready - started:.1f} s "
            f"(HTTP {listening - started:.1f} s, engine {ready - listening:.1f} s)"
        )
        address = self._listener.getsockname()[:2]
        print(announcement(engine.info, self._settings, address, took), flush=True)

    async def _start_engine(self, config: EngineConfig) -> AsyncEngine | None:
        """The engine; None if a signal came first."""
        start = asyncio.create_task(AsyncEngine.start(config))
        stop = asyncio.create_task(self._stop.wait())
        await asyncio.wait((start, stop), return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if start.done():
            return start.result()
        start.cancel()
        await asyncio.wait((start,))
        return None

    async def _wait_until_idle(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while self._state.num_in_flight and time.monotonic() < deadline:
            await asyncio.sleep(_POLL_SECONDS)


def _listen(settings: ApiSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        # Python's own words name the address once more.
        number = error.errno or 0
        reason = os.strerror(number) if number > 0 else error.strerror or error
        text = f"cannot listen on {settings.host} port {settings.port}: {reason}"
        if number == errno.EADDRINUSE:
            text += "; take another with --port, or 0 for any that is free"
        raise ConfigError(text) from None
