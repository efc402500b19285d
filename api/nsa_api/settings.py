"""Frozen settings of the HTTP side; the names are those of the command line's flags."""

import ipaddress

import msgspec

from nsa_serve.errors import ConfigError

MiB = 1 << 20
_POSITIVE = (
    *("max_body_bytes", "max_header_bytes", "max_header_count", "read_timeout"),
    *("max_request_tokens", "max_request_sequences", "max_request_candidates"),
    *("max_file_bytes", "max_batch_dir_bytes", "batch_days"),
    *("request_timeout", "stuck_timeout"),
)


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the API listens, whom it serves and what it refuses. Times are in seconds."""

    host: str = "127.0.0.1"
    port: int = 8000
    """0 lets the system choose."""
    api_keys: tuple[str, ...] = ()
    """Any of them opens the API; none leaves it open to whoever reaches the port."""
    served_model_names: tuple[str, ...] = ()
    """Names that requests may use; empty stands for the model's own."""
    allowed_hosts: tuple[str, ...] = ()
    """Host headers accepted besides the loopback names; on other binds than loopback they are
    checked only if some are named here."""

    max_body_bytes: int = 8 * MiB
    max_header_bytes: int = 32 << 10
    max_header_count: int = 100
    read_timeout: float = 5.0
    """For the whole head of a request, and for its body at `MIN_BODY_RATE` or faster."""
    max_request_tokens: int = 1 << 24
    """Bound on prompts · n · max_tokens of one request."""
    max_request_sequences: int = 512
    """Bound on prompts · n of one request; `serve` lowers it to what the queue can hold."""
    max_request_candidates: int = 1 << 19
    """Bound on what one answer tells of its prompts: prompt tokens · n · log-probabilities of each,
    and one more if they are echoed."""

    request_timeout: float | None = None
    """For a request in the queue and in the engine, unless it is a line of a batch; None sets no
    bound. The header `X-Request-Timeout` can ask for less."""

    batch_dir: str | None = None
    """Folder of the files and batches of the Batch API, which is off without one."""
    max_file_bytes: int = 200 * MiB
    max_batch_dir_bytes: int = 10_240 * MiB
    batch_days: float = 30.0
    """Age at which files and finished batches are forgotten."""

    shutdown_timeout: float = 30.0
    """How long running requests may take to finish after SIGTERM."""
    stuck_timeout: float = 60.0
    """Not ready once work has waited this long without a finished step; the log then says where
    the engine stands."""
    otlp_traces_endpoint: str | None = None
    """Where spans of requests go, over OTLP and HTTP: …/v1/traces."""

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port must be between 0 and 65535, got {self.port}")
        if not all(key.isascii() and key.strip() == key and key for key in self.api_keys):
            raise ConfigError("api_key must be non-empty ASCII without surrounding spaces")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be positive")
        if self.shutdown_timeout < 0:
            raise ConfigError("shutdown_timeout must not be negative")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
