"""The built-in pages: static files without a build step, outside assets or secrets."""

from functools import cache
from importlib.resources import files
from types import MappingProxyType

FILES = MappingProxyType(
    {
        "/": ("index.html", "text/html"),
        "/page/style.css": ("style.css", "text/css"),
        "/page/app.js": ("app.js", "text/javascript"),
        "/page/server.js": ("server.js", "text/javascript"),
        "/page/chat.js": ("chat.js", "text/javascript"),
        "/page/live.js": ("live.js", "text/javascript"),
        "/page/charts.js": ("charts.js", "text/javascript"),
        "/page/selection.js": ("selection.js", "text/javascript"),
        "/page/heatmap.js": ("heatmap.js", "text/javascript"),
        "/docs": ("docs.html", "text/html"),
        "/page/docs.js": ("docs.js", "text/javascript"),
        "/page/icon.svg": ("icon.svg", "image/svg+xml"),
    }
)
"""Path → file and media type."""


@cache
def content(path: str) -> bytes:
    """The file of one of the paths of `FILES`."""
    return files(__name__).joinpath(FILES[path][0]).read_bytes()
