"""What the servers' answers have in common: pages, errors in OpenAI's form, and the key."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from cpulm.export.html_page import PAGE_FILES
from cpulm.serve.completion_request import RequestError

Answer = Callable[[Request], Awaitable[Response]]

_FILES = Path(__file__).with_name("page_files")
STYLE, TALK = PAGE_FILES / "page.css", PAGE_FILES / "talk.js"
_KINDS = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}
_SAFE = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'{inline}; style-src 'self'{inline}; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def keyed(answer: Answer, key: str) -> Answer:
    """Answer only who has the key."""

    async def checked(request: Request) -> Response:
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
            raise RequestError("the key is missing or wrong", 401, code="invalid_api_key")
        return await answer(request)

    return checked


def page(file: str | Path, *, inline: str = "") -> Answer:
    """Answer with a file of this folder's ``page_files``, or another one.

    Args:
        inline: what the page's policy allows beside files, for a document that it shows in a frame.
    """
    path = _FILES / file
    headers = {name: value.replace("{inline}", inline) for name, value in _SAFE.items()}

    async def answer(_: Request) -> Response:
        return Response(path.read_bytes(), media_type=_KINDS[path.suffix], headers=headers)

    return answer


async def _refused(_: Request, error: RequestError) -> Response:
    return JSONResponse(error.body(), error.status)


async def _not_found(request: Request, error: HTTPException) -> Response:
    message = f"{error.detail}: {request.method} {request.url.path}"[:200]
    return JSONResponse(RequestError(message).body(), error.status_code, error.headers)


async def _failed(_request: Request, _error: Exception) -> Response:
    """A bug; the server goes on, and writes its traceback."""
    return JSONResponse(RequestError("the server failed; its terminal says where", 500).body(), 500)


HANDLERS: dict[Any, Any] = {RequestError: _refused, HTTPException: _not_found, Exception: _failed}
