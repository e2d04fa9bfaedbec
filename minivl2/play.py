"""`minivl2 play`: the X-ray page live, on this machine only, with a box to drop a picture into and a line to ask.

Source   the toolkit: Starlette, served by uvicorn (pip install 'minivl2[play]').          Tests   tests/test_play.py

One page, and one address that answers: POST /ask?question=...&name=..., the picture's bytes as the body. It replies with
a line of JSON for each thing that happens: {"note"}, {"piece", "boxes"} while the model speaks, {"page"} at the end, or
{"wrong"}, in words. One answer is given at a time; the others wait in line. Who closes the tab stops the answer.
"""

from __future__ import annotations

import asyncio
import io
import json
import socket
from collections.abc import AsyncIterator, Callable

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from minivl2 import panels
from minivl2.images import open_image
from minivl2.model import DeepSeekVL2
from minivl2.processor import Processor
from minivl2.xray import LONGEST_ANSWER, XRay, render

HERE = "127.0.0.1"              # the loopback address: nobody but this machine can reach it
LARGEST_UPLOAD = 20_000_000     # bytes
LONGEST_QUESTION = 2000         # characters
LONGEST_LINE = 4                # questions waiting, before others are sent away


class Wrong(ValueError):
    """What a visitor did that cannot be answered, said to the visitor."""


def application(
    model: DeepSeekVL2, processor: Processor, longest_answer: int, stopping: Callable[[], bool]
) -> Starlette:
    """The two addresses, around one model. stopping: is the server about to end?"""
    turn = asyncio.Lock()       # the model answers one question at a time: it uses all cores as it is
    waiting = 0

    async def home(request: Request) -> Response:
        page = render("play.html", {}, scripts=("play.js",), longest_question=LONGEST_QUESTION)
        return HTMLResponse(page, headers={"Cache-Control": "no-store", "X-Frame-Options": "DENY"})

    async def ask(request: Request) -> Response:
        # Another site's page, open in the same browser, could send forms here; it cannot forge where they come from.
        origin = request.headers.get("origin")
        if origin is not None and origin != f"{request.url.scheme}://{request.headers['host']}":
            return PlainTextResponse("questions are taken from this page only", status_code=403)
        try:
            body = await upload(request)
        except Wrong as wrong:
            return StreamingResponse(line_by_line({"wrong": str(wrong)}), media_type="application/x-ndjson")
        question, name = request.query_params.get("question", ""), request.query_params.get("name", "picture")
        return StreamingResponse(answer(question, name, body), media_type="application/x-ndjson",
                                 headers={"Cache-Control": "no-store"})

    async def answer(question: str, name: str, body: bytes) -> AsyncIterator[str]:
        """The lines of one answer. Starlette stops this, wherever it is, when the visitor leaves."""
        nonlocal waiting
        if turn.locked() and waiting >= LONGEST_LINE:
            yield line({"wrong": f"{waiting} questions are waiting already; please try again in a while"})
            return
        if turn.locked():
            yield line({"note": "Another question is being answered; yours is next in line."})
        waiting += 1
        try:
            await turn.acquire()
        finally:
            waiting -= 1
        try:
            yield line({"note": "Looking at the picture …"})
            seen = await run_in_threadpool(prepare, question, name, body)
            pieces = seen.stream(longest_answer)
            try:
                async for piece in iterate_in_threadpool(pieces):
                    yield line({"piece": piece, "boxes": panels.boxes_of(seen.text)})
                    if stopping():
                        raise Wrong("the server was stopped")
            finally:
                pieces.close()      # the hooks go with it
            yield line({"note": "Drawing what happened …"})
            yield line({"page": await run_in_threadpool(seen.page)})
        except ValueError as wrong:             # all of minivl2's errors are ValueErrors, and say what to do
            yield line({"wrong": str(wrong)})
        finally:
            turn.release()

    def prepare(question: str, name: str, body: bytes) -> XRay:
        if not question.strip():
            raise Wrong("there is no question: write one below the picture")
        if len(question) > LONGEST_QUESTION:
            raise Wrong(f"the question has {len(question):,} characters; {LONGEST_QUESTION:,} are the most")
        pictures = [open_image(io.BytesIO(body), name)] if body else []
        if question.count("<image>") > len(pictures):
            raise Wrong("the question has more <image> than there are pictures; here it is one picture, or none")
        return XRay(model, processor, question, pictures, [name])

    return Starlette(
        routes=[Route("/", home), Route("/ask", ask, methods=["POST"])],
        # A name that leads here from another site (DNS rebinding) is not ours.
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HERE, "localhost"])])


async def upload(request: Request) -> bytes:
    """The picture's bytes, counted while they come: what a header claims is only a claim."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST_UPLOAD:
            raise Wrong(f"the file is larger than {LARGEST_UPLOAD // 1_000_000} MB; scale the picture down first")
    return bytes(body)


def line(event: dict) -> str:
    return json.dumps(event) + "\n"


async def line_by_line(*events: dict) -> AsyncIterator[str]:
    for event in events:
        yield line(event)


def server(model: DeepSeekVL2, processor: Processor, port: int, longest_answer: int = LONGEST_ANSWER) -> uvicorn.Server:
    """To be run. An answer under way when it is told to stop ends after its next token."""
    app = application(model, processor, longest_answer, stopping=lambda: here.should_exit)
    here = uvicorn.Server(uvicorn.Config(
        app, host=HERE, port=port, log_level="warning", timeout_graceful_shutdown=5, server_header=False))
    return here


def check_port(port: int) -> None:
    """Before a model is loaded for nothing."""
    with socket.socket() as here:
        here.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)      # of a server that just ended is no hindrance
        try:
            here.bind((HERE, port))
        except (OSError, OverflowError) as problem:
            raise ValueError(f"cannot listen on port {port} ({problem}); name another with --port") from None


def serve(model: DeepSeekVL2, processor: Processor, port: int, longest_answer: int = LONGEST_ANSWER) -> None:
    """Until Ctrl-C."""
    server(model, processor, port, longest_answer).run()
