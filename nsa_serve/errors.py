"""The errors that users of nsa-serve can meet, one tree.

NsaServeError
├── ConfigError            a setting or a model folder that cannot be served; one line says why
│   └── ModelLoadError     a file of the model folder is missing, damaged or contradicts another
├── RequestError           one request is at fault; nothing else is touched
│   ├── ContextLengthError     prompt (and output) longer than the model or the cache can hold
│   └── QueueFullError         the bounded queue is full; try again later
├── GenerationError        the engine could not compute one request; all others go on
├── DeadlineError          a request was not done in the time that it was given
├── BatchError             a batch of requests cannot go on; what it wrote is whole
├── TrainingError          a training run cannot go on; its last checkpoint can
├── EngineDeadError        the engine process is gone
└── OfflineError           something must be fetched once and no package index answers
"""


class NsaServeError(Exception):
    """Base of every error that nsa-serve raises on purpose."""


class ConfigError(NsaServeError):
    """A setting or a model folder that cannot be served; the message is one line."""


class ModelLoadError(ConfigError):
    """A file of the model folder is missing, damaged or contradicts another."""


class RequestError(NsaServeError):
    """One request is at fault; the engine and all other requests go on."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthError(RequestError):
    """The prompt is longer than the model's context or than the whole cache."""


class QueueFullError(RequestError):
    """The bounded queue of waiting requests is full; try again after `retry_after` seconds."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class GenerationError(NsaServeError):
    """The engine could not compute one request, through no fault found in it; all others go on."""


class DeadlineError(NsaServeError):
    """A request was not done in the time that it was given; all others go on."""


class BatchError(NsaServeError):
    """A batch of requests cannot start or go on; the lines that it wrote are whole."""


class TrainingError(NsaServeError):
    """A training run cannot go on; what it saved last is from before."""


class EngineDeadError(NsaServeError):
    """The engine process ended; requests in flight are lost."""


class OfflineError(NsaServeError):
    """Something must be fetched once and no package index answers."""
