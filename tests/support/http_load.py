"""Many requests at once over real sockets, by aiohttp; and what a server counts meanwhile."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import aiohttp

from tests.support.http_server import ServerProcess

T = TypeVar("T")
Work = Callable[[aiohttp.ClientSession], Awaitable[T]]


def run_load(server: ServerProcess, work: Work[T]) -> T:
    """Run `work` with a session whose addresses are the server's paths."""

    async def main() -> T:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=300)
        async with aiohttp.ClientSession(
            server.url, connector=connector, timeout=timeout
        ) as session:
            return await work(session)

    return asyncio.run(main())


async def gather(count: int, at_once: int, one: Callable[[int], Awaitable[T]]) -> list[T]:
    """`one` for each number below `count`, so many at once, in order."""
    places = asyncio.Semaphore(at_once)

    async def placed(i: int) -> T:
        async with places:
            return await one(i)

    return list(await asyncio.gather(*map(placed, range(count))))


def series(server: ServerProcess, headers: dict[str, str] | None = None) -> dict[str, float]:
    """Every series of /metrics: its name and labels, without the prefix, and its value."""
    text = server.http.get("/metrics", headers=headers).text
    found = re.findall(r"^nsa_serve:(\S+?)(\{.*\})? (\S+)$", text, re.MULTILINE)
    return {name + labels: float(value) for name, labels, value in found}


def total(found: dict[str, float], name: str, **labels: Any) -> float:
    """The sum over all series of this name that have these labels."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(
        value
        for key, value in found.items()
        if key.partition("{")[0] == name and all(part in key for part in wanted)
    )
