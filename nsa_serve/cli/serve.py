"""`nsa-serve serve`: the HTTP API over an engine."""

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from nsa_serve.cli.config_file import use_config_file
from nsa_serve.cli.options import ModelArgument, engine_options
from nsa_serve.config import EngineConfig
from nsa_serve.logs import LogFormat, configure_logs

KEY_VARIABLE = "NSA_SERVE_API_KEY"
_KEY_HELP = "A key that opens the API; may be given several times. Without one it is open."
_NAME_HELP = "The model's name in requests; may be given several times."
_HOST_HELP = "A Host header accepted beside the loopback names; may be given several times."
_REQUEST_HELP = "Seconds that a request may wait and run; no bound unless given."
_TIMEOUT_HELP = "Seconds that running requests may take after SIGTERM."
_BATCH_HELP = "Folder for files and batches; in the user's state folder unless given, or off."
_STUCK_HELP = "Not ready after so many seconds without a step while work waits; stacks are logged."
_TRACES_HELP = "Send a span of each request there (OTLP over HTTP); needs the extra otel."
_LOG_HELP = "Lines for people, or one JSON object for each record."
_FILE_HELP = "Flags from a TOML or JSON file; those of the command line win."


@engine_options(model=ModelArgument)
def serve(
    config: EngineConfig,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 lets the system choose.")] = 8000,
    api_key: Annotated[list[str] | None, typer.Option(envvar=KEY_VARIABLE, help=_KEY_HELP)] = None,
    served_model_name: Annotated[list[str] | None, typer.Option(help=_NAME_HELP)] = None,
    allowed_host: Annotated[list[str] | None, typer.Option(help=_HOST_HELP)] = None,
    request_timeout: Annotated[float | None, typer.Option(help=_REQUEST_HELP)] = None,
    shutdown_timeout: Annotated[float, typer.Option(help=_TIMEOUT_HELP)] = 30.0,
    batch_dir: Annotated[str | None, typer.Option(help=_BATCH_HELP)] = None,
    stuck_timeout: Annotated[float, typer.Option(help=_STUCK_HELP)] = 60.0,
    otlp_traces_endpoint: Annotated[str | None, typer.Option(help=_TRACES_HELP)] = None,
    log_format: Annotated[LogFormat, typer.Option(help=_LOG_HELP)] = "text",
    config_file: Annotated[
        Path | None,
        typer.Option("--config", help=_FILE_HELP, callback=use_config_file, is_eager=True),
    ] = None,
) -> None:
    """Serve a model over HTTP, as OpenAI's API.

    Until SIGTERM or Ctrl-C: then what runs may finish.
    """
    from nsa_api.server import serve as serve_http
    from nsa_api.settings import ApiSettings

    configure_logs(log_format)
    settings = ApiSettings(
        host=host,
        port=port,
        api_keys=tuple(api_key or ()),
        served_model_names=tuple(served_model_name or ()),
        allowed_hosts=tuple(allowed_host or ()),
        request_timeout=request_timeout,
        shutdown_timeout=shutdown_timeout,
        stuck_timeout=stuck_timeout,
        otlp_traces_endpoint=otlp_traces_endpoint,
        batch_dir=_batch_folder(batch_dir, port),
    )
    serve_http(config, settings)


def _batch_folder(given: str | None, port: int) -> str | None:
    """That of the flag, or the user's own for this port if there can be one."""
    if given is not None:
        return None if given == "off" else given
    if port == 0:
        return None
    try:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        folder = Path(state) / "nsa-serve" / f"batches-{port}"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError("no permission to write")
    except (OSError, RuntimeError) as error:
        logging.getLogger(__name__).warning("the Batch API is off, give a --batch-dir: %s", error)
        return None
    return str(folder)
