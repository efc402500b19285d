"""`nsa-serve run-batch`: a file of requests, answered into another file."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

import typer

from nsa_serve import event_loop
from nsa_serve.batch.progress import BatchBar, first_failure
from nsa_serve.batch.reading import InputFile
from nsa_serve.batch.running import BatchRun, Progress
from nsa_serve.batch.writing import OutputFile
from nsa_serve.cli.config_file import use_config_file
from nsa_serve.cli.options import ModelArgument, engine_options
from nsa_serve.cli.session import bring_built_in, spinner
from nsa_serve.config import EngineConfig
from nsa_serve.engine.client import AsyncEngine
from nsa_serve.errors import BatchError

_IN_HELP = "Requests, one a line, as OpenAI's batches have them; - is standard input."
_OUT_HELP = "Where each answer goes as it comes, in any order."
_RESUME_HELP = "Go on with OUT: the custom_ids that it has are not asked again."
_NAME_HELP = "The model's name in requests; may be given several times."
_FILE_HELP = "Flags from a TOML or JSON file; those of the command line win."
_STANDARD_INPUT = Path("/dev/stdin")


@engine_options(model=ModelArgument)
def run_batch(
    config: EngineConfig,
    input_file: Annotated[Path, typer.Option("--input-file", "-i", help=_IN_HELP, metavar="IN")],
    output_file: Annotated[
        Path, typer.Option("--output-file", "-o", help=_OUT_HELP, metavar="OUT")
    ],
    resume: Annotated[bool, typer.Option("--resume", help=_RESUME_HELP)] = False,
    served_model_name: Annotated[list[str] | None, typer.Option(help=_NAME_HELP)] = None,
    config_file: Annotated[
        Path | None,
        typer.Option("--config", help=_FILE_HELP, callback=use_config_file, is_eager=True),
    ] = None,
) -> None:
    """Answer a file of requests, for completions or chats.

    A bad line becomes an error line and ends nothing. Killed at any moment, it goes on with
    --resume.
    """
    if str(output_file) == "-":
        raise BatchError("answers go to a file, which a later run can go on with: name one")
    if str(input_file) == "-":
        input_file = _STANDARD_INPUT
    with InputFile(input_file) as source, OutputFile(output_file, resume=resume) as target:
        if target.same_file(input_file):
            raise BatchError(f"{input_file} cannot be read and written at once")
        if config.model is None and config.runner == "model":
            bring_built_in()
        event_loop.run(_run(config, tuple(served_model_name or ()), source, target))


async def _run(
    config: EngineConfig, names: tuple[str, ...], source: InputFile, target: OutputFile
) -> None:
    from nsa_api.batches.offline import OfflineApi

    with spinner("Loading the model"):
        engine = await AsyncEngine.start(config)
    try:
        api, bar = OfflineApi(engine, config, names), BatchBar(source.num_bytes)
        run = BatchRun(source, target, api, created=source.modified, report=bar.show)
        try:
            with bar:
                await run.run()
        except asyncio.CancelledError:
            _tell(f"{bar.summary(run.progress)}: {target.path}; go on with --resume", run.progress)
            raise
        _tell(f"{bar.summary(run.progress)}: {target.path}", run.progress)
    finally:
        await engine.shutdown()


def _tell(summary: str, progress: Progress) -> None:
    for text in filter(None, (summary, first_failure(progress))):
        print(text, file=sys.stderr)
