"""The parent's side of one engine process: start it, talk to it, notice its end, reap it."""

import asyncio
import logging
import socket
import subprocess
import sys
from collections.abc import Callable

from msgspec.msgpack import Decoder

from nsa_serve.config import EngineConfig
from nsa_serve.engine.messages import FromCore, Ready, StepOutputs, ToCore
from nsa_serve.engine.stacks import SIGNAL, StackFile
from nsa_serve.engine.transport import FrameProtocol, pack_frame
from nsa_serve.errors import ConfigError, EngineDeadError, ModelLoadError, OfflineError

logger = logging.getLogger(__name__)

_ERRORS = {kind.__name__: kind for kind in (ConfigError, ModelLoadError, OfflineError)}


class EngineConnection:
    """One engine process and the socket to it."""

    def __init__(self) -> None:
        """Start the process; it waits for its configuration."""
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._stacks = StackFile()
            fds = [theirs.fileno(), self._stacks.fileno()]
            command = [sys.executable, "-m", "nsa_serve.engine.process"]
            # A session of its own: Ctrl-C in a terminal ends it through the parent only.
            self._process = subprocess.Popen(  # noqa: S603
                [*command, "--fd", str(fds[0]), "--stacks-fd", str(fds[1])],
                stdin=subprocess.DEVNULL,
                pass_fds=fds,
                start_new_session=True,
            )
        self._transport: asyncio.WriteTransport | None = None
        self._decoder: Decoder[FromCore] = Decoder(FromCore)
        self._ready: asyncio.Future[Ready] = asyncio.get_running_loop().create_future()
        self._on_step: Callable[[StepOutputs], None] = _ignore
        self._on_lost: Callable[[], None] = _ignore

    @property
    def pid(self) -> int:
        """Process id of the engine."""
        return self._process.pid

    async def load(
        self,
        config: EngineConfig,
        on_step: Callable[[StepOutputs], None],
        on_lost: Callable[[], None],
    ) -> Ready:
        """Let the process load what `config` names.

        From then on `on_step` is called with all that it computes, and `on_lost` if it ends.
        Raises what the process met, with the one line that it gave: ConfigError, ModelLoadError or
        OfflineError; EngineDeadError if it gave none.
        """
        self._on_step = on_step
        self._transport, _ = await asyncio.get_running_loop().create_unix_connection(
            lambda: FrameProtocol(self._receive, self._lost), sock=self._socket
        )
        self._write(config)
        ready = await self._ready
        if self._transport.is_closing():
            raise EngineDeadError("the engine process ended as soon as it was ready")
        self._on_lost = on_lost
        return ready

    def ask_for_stacks(self) -> None:
        """Let the process write down where its threads stand, for `read_stacks`."""
        if self._process.poll() is None:
            self._process.send_signal(SIGNAL)

    def read_stacks(self) -> str:
        """What it wrote since the last call."""
        return self._stacks.read()

    def send(self, message: ToCore) -> None:
        """Send a message, without waiting; to an engine that is gone it is dropped."""
        self._write(message)

    async def close(self) -> None:
        """End the process now, and reap it."""
        self._on_lost = _ignore
        self._process.kill()
        if self._transport is None:
            self._socket.close()
        else:
            self._transport.close()
        await asyncio.to_thread(self._process.wait)
        self._stacks.close()
        if self._ready.done() and not self._ready.cancelled():
            self._ready.exception()  # or asyncio complains that nobody looked

    def _write(self, message: object) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(pack_frame(message))

    def _receive(self, frame: bytes) -> None:
        message = self._decoder.decode(frame)
        if isinstance(message, StepOutputs):
            self._on_step(message)
        elif isinstance(message, Ready):
            self._ready.set_result(message)
        elif self._ready.done():
            logger.error("the engine process failed: %s", message.message)
        else:
            kind = _ERRORS.get(message.kind, ConfigError)
            self._ready.set_exception(kind(message.message))

    def _lost(self) -> None:
        if not self._ready.done():
            self._ready.set_exception(EngineDeadError("the engine process ended while starting"))
        self._on_lost()


def _ignore(*_: object) -> None:
    pass
