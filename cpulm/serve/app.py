"""The HTTP interface: OpenAI's ``/v1`` for one model, and a page to write or to talk with it.

Every request under ``/v1`` needs the key. No answer has a CORS header: a browser shows them to no other site.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from cpulm.run_dir import RunDir
from cpulm.serve.answers import HANDLERS, STYLE, TALK, keyed, page
from cpulm.serve.completion_request import (
    ChatRequest,
    CompletionRequest,
    RequestError,
    TextRequest,
    read_request,
)
from cpulm.serve.model_queue import Job, ModelQueue
from cpulm.serve.openai_answers import Answer, ChatAnswer, CompletionAnswer
from cpulm.serve.report_app import report_routes
from cpulm.serve.written_text import Begun, Event, Piece, ServedModel

MOST_BYTES, MOST_DRAINED_BYTES = 1 << 20, 1 << 26
"""A larger body is refused; up to the second size it is read to its end: the client then sees the answer."""


def build_app(served: ServedModel, key: str, run: RunDir | None = None) -> Starlette:
    """The application that serves one model to who has the key, and at ``/watch`` the report of its run."""
    queue = ModelQueue(served)
    model = {"id": served.name, "object": "model", "created": int(time.time()), "owned_by": "cpulm"}

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [model]})

    async def one_model(request: Request) -> Response:
        _require_model(served, request.path_params["name"])
        return JSONResponse(model)

    async def written(request: Request, asked: TextRequest, answer: Answer) -> Response:
        job = queue.submit(asked)
        watch = asyncio.create_task(_watch(job, request))
        try:
            begun = await _next(job)
            assert isinstance(begun, Begun)
            if asked.stream:
                return StreamingResponse(_streamed(job, answer, begun, watch), media_type="text/event-stream")
            whole = JSONResponse(await _whole(job, answer, begun))
            watch.cancel()
            return whole
        except BaseException:
            job.cancel()
            watch.cancel()
            raise

    async def completions(request: Request) -> Response:
        asked = read_request(await _body(request), CompletionRequest)
        _require_model(served, asked.model)
        return await written(request, asked, CompletionAnswer(served.name, asked))

    async def chat(request: Request) -> Response:
        body = await _body(request)
        if not served.talks:
            message = "this model was not trained on conversations: it continues text. Use /v1/completions"
            raise RequestError(message)
        asked = read_request(body, ChatRequest)
        _require_model(served, asked.model)
        return await written(request, asked, ChatAnswer(served.name, asked))

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(queue.close)

    api = [
        ("/v1/models", models, "GET"),
        ("/v1/models/{name:path}", one_model, "GET"),
        ("/v1/completions", completions, "POST"),
        ("/v1/chat/completions", chat, "POST"),
    ]
    routes = [Route(path, keyed(answer, key), methods=[method]) for path, answer, method in api]
    name = "chat" if served.talks else "write"
    routes += [Route("/", page(f"{name}.html")), Route(f"/{name}.js", page(f"{name}.js"))]
    routes += [Route("/client.js", page("client.js")), Route("/talk.js", page(TALK))]
    routes += [Route("/page.css", page(STYLE))]
    if run is not None:
        routes += report_routes(run, key, "/watch")
    return Starlette(routes=routes, lifespan=lifespan, exception_handlers=HANDLERS)


def _require_model(served: ServedModel, name: str | None) -> None:
    if name not in (None, served.name):
        message = f"there is no model {name!r}"[:200] + f"; this is {served.name!r}"
        raise RequestError(message, 404, param="model", code="model_not_found")


async def _body(request: Request) -> bytes:
    content, size = [], 0
    try:
        async for part in request.stream():
            size += len(part)
            if size <= MOST_BYTES:
                content.append(part)
            elif size > MOST_DRAINED_BYTES:
                break
    except ClientDisconnect as error:
        raise RequestError("the client has left", 400) from error
    if size > MOST_BYTES:
        raise RequestError(f"the body is larger than {MOST_BYTES} bytes", 413)
    return b"".join(content)


async def _watch(job: Job, request: Request) -> None:
    """End the job once its client leaves; the request's body has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.cancel()
    job.events.put_nowait(RequestError("the client has left"))


async def _next(job: Job) -> Begun | Piece | None:
    """The next event.

    Raises:
        RequestError: if the request cannot be answered.
    """
    event: Event = await job.events.get()
    if isinstance(event, Exception):
        raise event
    return event


async def _whole(job: Job, answer: Answer, begun: Begun) -> dict[str, Any]:
    texts: dict[int, list[Piece]] = {}
    while isinstance(piece := await _next(job), Piece):
        texts.setdefault(piece.row, []).append(piece)
    choices = []
    for row, pieces in sorted(texts.items()):
        text = "".join(piece.text for piece in pieces)
        tokens = [token for piece in pieces for token in piece.tokens]
        choices.append(answer.choice(Piece(row, text, tokens, pieces[-1].finish_reason)))
    made = sum(pieces[-1].made_tokens for pieces in texts.values())
    return {**answer.head, "choices": choices, "usage": _usage(begun, made)}


async def _streamed(job: Job, answer: Answer, begun: Begun, watch: asyncio.Task[None]) -> AsyncIterator[str]:
    """Server-sent events: one per piece, then ``[DONE]``. A client that leaves ends the job."""
    made = 0
    try:
        while isinstance(piece := await _next(job), Piece):
            made += piece.made_tokens
            yield _line({**answer.head, "choices": [answer.choice(piece)]})
        options = job.request.stream_options
        if options is not None and options.include_usage:
            yield _line({**answer.head, "choices": [], "usage": _usage(begun, made)})
        yield "data: [DONE]\n\n"
    except RequestError as error:
        yield _line(error.body())
    finally:
        job.cancel()
        watch.cancel()


def _line(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value)}\n\n"


def _usage(begun: Begun, made: int) -> dict[str, int]:
    total = begun.prompt_tokens + made
    return {"prompt_tokens": begun.prompt_tokens, "completion_tokens": made, "total_tokens": total}
