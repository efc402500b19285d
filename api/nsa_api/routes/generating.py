"""The kind of route that wants places in the queue."""

from starlette.types import Receive, Scope, Send

from nsa_api.state import ServerState
from nsa_api.validation import StrictRoute


class GeneratingRoute(StrictRoute):
    """A strict route behind the entrance to the queue."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless those before it fill the queue."""
        if scope["method"] not in (self.methods or ()):
            await super().handle(scope, receive, send)
            return
        state: ServerState = scope["app"].state.server
        with state.entrance.entering(state.engine()):
            await super().handle(scope, receive, send)
