from typing import Any

import pytest

from nsa_scheduler import SchedulerConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_pages", 0),
        ("page_size", 0),
        ("max_num_seqs", 0),
        ("max_num_batched_tokens", 0),
        ("max_num_queued", 0),
        ("max_model_len", 1),
        ("num_lookahead_tokens", 2),
        ("watermark", 1.0),
        ("watermark", -0.1),
    ],
)
def test_senseless_limit_is_refused_by_name(field: str, value: Any) -> None:
    limits: dict[str, Any] = {"num_pages": 8, "page_size": 4, "max_model_len": 32, field: value}
    with pytest.raises(ValueError, match=field):
        SchedulerConfig(**limits)


@pytest.mark.parametrize(
    ("num_pages", "watermark", "pages"), [(100, 0.01, 1), (101, 0.01, 2), (4, 0.01, 1), (9, 0.0, 0)]
)
def test_watermark_is_rounded_up(num_pages: int, watermark: float, pages: int) -> None:
    config = SchedulerConfig(
        num_pages=num_pages, page_size=4, max_model_len=32, watermark=watermark
    )
    assert config.watermark_pages == pages
