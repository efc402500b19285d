"""The engine process: `python -m nsa_serve.engine.process --fd N --stacks-fd M`, N one end of a
socket pair, M an open file that is told where the threads stand when SIGUSR1 comes.

The first message it reads is an `EngineConfig`; it answers `Ready` or `CoreFailed` and then
serves the core's loop. It lives as long as its parent: when the other end closes it ends at
once, in the middle of a step too. Signals that a terminal or a container sends to the whole
group are the parent's to act on.
"""

import argparse
import faulthandler
import logging
import os
import select
import signal
import socket
import sys
import threading

from msgspec.msgpack import Decoder

from nsa_serve.config import EngineConfig
from nsa_serve.engine.core import EngineCore
from nsa_serve.engine.idle_check import IdleCheck
from nsa_serve.engine.load import load_runner
from nsa_serve.engine.messages import CoreFailed, ToCore
from nsa_serve.engine.stacks import answer_with_stacks
from nsa_serve.engine.transport import Channel
from nsa_serve.errors import NsaServeError
from nsa_serve.garbage import keep_all
from nsa_serve.logs import configure_logs

logger = logging.getLogger(__name__)

_SECONDS_IDLE_BEFORE_CHECK = 0.5


def main() -> int:
    """Serve one client over the inherited socket until it goes; the exit status."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    configure_logs()
    parser = argparse.ArgumentParser(prog="python -m nsa_serve.engine.process")
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--stacks-fd", type=int, required=True)
    arguments = parser.parse_args()
    faulthandler.enable()
    answer_with_stacks(arguments.stacks_fd)
    with socket.socket(fileno=arguments.fd) as sock:
        threading.Thread(target=_end_with_parent, args=(sock,), daemon=True).start()
        return _serve(sock)


def _serve(sock: socket.socket) -> int:
    channel = Channel[ToCore](sock, Decoder(ToCore))
    try:
        core = EngineCore(config := _receive_config(sock), load_runner(config))
        keep_all()
        channel.send(core.ready)
        core.prepare_grammars()
        _loop(core, channel)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return 0
    except Exception as error:
        if not isinstance(error, NsaServeError):
            logger.error("the engine failed", exc_info=error)
        kind = type(error).__name__ if isinstance(error, NsaServeError) else ""
        channel.send(CoreFailed(_one_line(error), kind))
    return 1


def _loop(core: EngineCore, channel: Channel[ToCore]) -> None:
    """Step while there is work, taking in messages between steps; block while there is none."""
    check = IdleCheck(core)
    while True:
        if core.has_work:
            messages = channel.receive(timeout=0)
        else:
            messages = channel.receive(_SECONDS_IDLE_BEFORE_CHECK)
            if not messages:
                check.idle()
                messages = channel.receive(timeout=None)
        for message in messages:
            core.handle(message)
        channel.send(check.step())


def _receive_config(sock: socket.socket) -> EngineConfig:
    channel = Channel[EngineConfig](sock, Decoder(EngineConfig))
    while not (messages := channel.receive(timeout=None)):
        pass
    return messages[0]


def _end_with_parent(sock: socket.socket) -> None:
    """Wait for the other end to close, whatever this process is busy with."""
    hang_up = select.poll()
    hang_up.register(sock, 0)
    hang_up.poll()
    os._exit(0)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, NsaServeError) else f"{type(error).__name__}: {text}"


if __name__ == "__main__":
    sys.exit(main())
