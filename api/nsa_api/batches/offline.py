"""An engine of one's own for a batch, without a server around it."""

import asyncio

import msgspec

from nsa_api.app import create_app
from nsa_api.batches.direct import DirectApi
from nsa_api.settings import ApiSettings
from nsa_serve.config import EngineConfig
from nsa_serve.engine.client import AsyncEngine
from nsa_serve.errors import BatchError

SECONDS_TO_RESTART = 300.0
_POLL_SECONDS = 0.05
_LEAST_AHEAD = 16


class OfflineApi(DirectApi):
    """Keeps the engine full: as many requests as run at once, and as many again that wait, for
    when all of them end in one step."""

    def __init__(self, engine: AsyncEngine, config: EngineConfig, names: tuple[str, ...]) -> None:
        settings = ApiSettings(served_model_names=names)
        sequences = min(settings.max_request_sequences, config.max_num_unfinished)
        settings = msgspec.structs.replace(settings, max_request_sequences=sequences)
        super().__init__(create_app(engine, settings))
        engine.on_step.clear()  # metrics that nobody reads, a tenth of what a token costs here
        ahead = min(max(_LEAST_AHEAD, engine.info.max_num_seqs), config.max_num_queued_reqs)
        self._engine = engine
        self._capacity = engine.info.max_num_seqs + ahead

    @property
    def capacity(self) -> int:
        """Continuations to have in flight at once."""
        return self._capacity

    async def ready(self) -> None:
        """Wait for an engine that is being started anew; raises `BatchError` if none comes."""
        deadline = asyncio.get_running_loop().time() + SECONDS_TO_RESTART
        while not self._engine.alive:
            if asyncio.get_running_loop().time() > deadline:
                raise BatchError("the engine does not come back; go on with --resume")
            await asyncio.sleep(_POLL_SECONDS)
