"""What a server prints once it serves: what, where, and what to try next."""

import ipaddress
import json

from nsa_api.settings import ApiSettings
from nsa_serve.engine.messages import Ready


def announcement(info: Ready, settings: ApiSettings, address: tuple[str, int], took: str) -> str:
    """Lines for people; `address` is where the server listens, `took` how long the start did."""
    lines = [
        f"{info.model_name}: {info.attention} attention, {info.dtype} on {info.device}, "
        f"context {info.max_model_len:,}, up to {info.max_num_seqs} sequences at once"
    ]
    if info.report:
        lines.append(info.report)
    lines.append(f"nsa-serve is ready at {_url(*address)} {took}")
    url = _url(_reachable(address[0]), address[1])
    lines.append(f"  page   {url}/")
    lines.append(f"  API    {url}/v1, as OpenAI's; {url}/docs lists it")
    lines.append(f"  try    {_curl(url, info, settings)}")
    if not settings.loopback and not settings.api_keys:
        lines.append("  note   there is no --api-key: whoever reaches this port may use it")
    return "\n".join(lines)


def _curl(url: str, info: Ready, settings: ApiSettings) -> str:
    name = settings.served_model_names[0] if settings.served_model_names else info.model_name
    body = json.dumps({"model": name, "prompt": "Call me", "max_tokens": 8}, ensure_ascii=False)
    key = " -H 'Authorization: Bearer KEY'" if settings.api_keys else ""
    quoted = body.replace("'", "'\\''")
    return f"curl {url}/v1/completions{key} -H 'Content-Type: application/json' -d '{quoted}'"


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _reachable(host: str) -> str:
    """An address to ask from this machine; 0.0.0.0 is none in every browser."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    if not address.is_unspecified:
        return host
    return "127.0.0.1" if address.version == 4 else "::1"
