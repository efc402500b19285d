"""Why a sequence is not taken in."""


class NeverFits(ValueError):  # noqa: N818  # names the condition, as the queue's `Full` does
    """The prompt and one more token exceed the model's context or the whole cache."""


class QueueFull(RuntimeError):  # noqa: N818
    """As many sequences wait as may wait; one more can come once some have been admitted."""
