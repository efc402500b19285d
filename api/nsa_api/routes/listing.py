"""Lists in pages, as OpenAI's clients walk through them."""

import re
from collections.abc import Sequence

from fastapi import Request
from starlette.responses import Response

from nsa_api.batches.records import BatchRecord, FileRecord, public
from nsa_api.errors import bad_request
from nsa_api.routes.common import json_response

_ID = re.compile("(file-|batch_)[0-9a-f]{1,64}")


def listed(
    request: Request,
    records: Sequence[FileRecord | BatchRecord],
    *,
    default_limit: int,
    max_limit: int,
) -> Response:
    """The page that `limit`, `after` and `order` of the query ask for; the newest comes first."""
    query = request.query_params
    order, after, limit = query.get("order", "desc"), query.get("after"), query.get("limit")
    if order not in ("asc", "desc"):
        raise bad_request("order must be asc or desc", "order")
    if limit is not None and not (limit.isascii() and limit.isdigit() and len(limit) < 9):
        raise bad_request("limit must be a number", "limit")
    count = default_limit if limit is None else int(limit)
    if not 1 <= count <= max_limit:
        raise bad_request(f"limit must be between 1 and {max_limit}", "limit")
    if after is not None and not _ID.fullmatch(after):
        raise bad_request("after must be the last id of the page before", "after")
    rest = sorted(records, key=lambda record: record.id, reverse=order == "desc")
    if after is not None:  # ids are in the order of time, so it need not be there any more
        rest = [r for r in rest if (r.id < after if order == "desc" else r.id > after)]
    page = rest[:count]
    return json_response(
        {
            "object": "list",
            "data": [public(record) for record in page],
            "first_id": page[0].id if page else None,
            "last_id": page[-1].id if page else None,
            "has_more": count < len(rest),
        }
    )
