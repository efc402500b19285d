"""What the parity tests found, said at their end: the worst difference from each original."""

from collections.abc import Callable

import pytest

from tests.support.parity import BOUND, Parity

PREFIX = "parity with "


@pytest.fixture
def parity(record_property: Callable[[str, object], None]) -> Parity:
    """Holds decoders to originals, and keeps the figures."""
    return Parity(lambda family, worst: record_property(PREFIX + family, worst))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """A line for each family."""
    worst: dict[str, list[float]] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name.startswith(PREFIX) and report.when == "call":
                    worst.setdefault(name.removeprefix(PREFIX), []).append(value)
    if worst:
        terminalreporter.section(f"largest absolute difference of a logit (bound {BOUND})")
    for family, values in worst.items():
        terminalreporter.write_line(f"{family:12} {max(values):.1e} of {len(values)} comparisons")
