"""A clock that is turned by hand."""


class HandClock:
    """Call it for the time in seconds."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def turn(self, seconds: float) -> None:
        """Let so much time pass."""
        assert seconds >= 0
        self.now += seconds
