"""Settings are checked once, with a line that names the field."""

from typing import Any

import pytest

from nsa_api.settings import ApiSettings
from nsa_serve.errors import ConfigError


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("example.org", False),
    ],
)
def test_loopback_is_recognised(host: str, loopback: bool) -> None:
    assert ApiSettings(host=host).loopback == loopback


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("port", -1),
        ("port", 65536),
        ("api_key", ("",)),
        ("api_key", ("ok", " x")),
        ("api_key", ("é",)),
        ("max_body_bytes", 0),
        ("max_request_tokens", 0),
        ("read_timeout", 0.0),
        ("shutdown_timeout", -1.0),
    ],
)
def test_bad_setting_is_named(field: str, value: Any) -> None:
    name = "api_keys" if field == "api_key" else field
    with pytest.raises(ConfigError, match=field):
        ApiSettings(**{name: value})
