"""The HTTP interface: rows in, predictions out, and what a server tells of itself."""

from __future__ import annotations

import asyncio
import io
import ipaddress
import json
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

import polars as pl
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from autoembed.auxiliary import prediction_columns
from autoembed.serving.metrics import MEDIA, ServerMetrics
from autoembed.serving.rows import RefusedError
from autoembed.serving.state import Loaded, State
from autoembed.types import Array

ARROW, JSON = "application/vnd.apache.arrow.stream", "application/json"
_SHORT = 1 << 16  # bytes of a body up to which it is answered at once, without a thread
_NO_CACHE = {"cache-control": "no-store"}


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a server takes on.

    Attributes:
        max_bytes: of a request's body.
        max_requests: that are read or answered at once; more get status 503.
        body_seconds: that a client may take to send a body.
    """

    max_bytes: int = 8 << 20
    max_requests: int = 64
    body_seconds: float = 30.0


class App:
    """The routes of a server, and the counters behind them.

    Args:
        state: the loaded model.
        limits: of a request.
        reload_every: seconds between two looks for a new bundle; 0 for none.
        started: called once the server takes requests.
        say: told of new models and refused ones, a line each.
    """

    def __init__(
        self,
        state: State,
        limits: Limits,
        *,
        reload_every: float = 0.0,
        started: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.state, self.limits, self.reload_every, self.started, self.say = state, limits, reload_every, started, say
        self.metrics, self.running = ServerMetrics(), 0
        self.scorer, self.loader = ThreadPoolExecutor(1, "scorer"), ThreadPoolExecutor(1, "loader")

    def asgi(self) -> ASGIApp:
        """The application for an ASGI server."""
        routes = [
            Route("/predict", self.predict, methods=["POST"]),
            Route("/health", self.health),
            Route("/ready", self.ready),
            Route("/metrics", self.tell),
            Route("/model", self.model),
            Route("/reload", self.reload, methods=["POST"]),
        ]
        known = {route.path for route in routes}
        return self._counted(Starlette(routes=routes, lifespan=self._lifespan), known)

    async def predict(self, request: Request) -> Response:
        """Scores the rows of a request."""
        if self.running >= self.limits.max_requests:
            more = {"retry-after": "1"}
            return _refusal(RefusedError(503, f"{self.running} requests are being answered: try again"), more)
        self.running += 1
        try:
            kind, arrow = _kind(request), ARROW in request.headers.get("accept", "")
            model, body = self.state.current, await self._body(request)
            start = time.perf_counter()
            if len(body) <= _SHORT:
                ids, content = _answer(model, kind, body, arrow)
            else:
                loop = asyncio.get_running_loop()
                ids, content = await loop.run_in_executor(self.scorer, _answer, model, kind, body, arrow)
            self.metrics.answered(time.perf_counter() - start, len(ids))
        except RefusedError as refused:
            return _refusal(refused)
        finally:
            self.running -= 1
        model.count(ids)
        return Response(content, headers={"x-autoembed-model": model.id}, media_type=ARROW if arrow else JSON)

    async def health(self, request: Request) -> Response:
        """Whether the process is alive, and why a newer bundle is refused, if it is."""
        model, failure = self.state.current, self.state.failure
        return _json({"status": "ok", "model": model.id, "loaded": model.loaded, "reload_failure": failure})

    async def ready(self, request: Request) -> Response:
        """Whether a request would be taken."""
        free = self.running < self.limits.max_requests
        return _json({"ready": free, "model": self.state.current.id}, 200 if free else 503)

    async def tell(self, request: Request) -> Response:
        """The metrics for Prometheus."""
        return PlainTextResponse(self.metrics.text(self.state), media_type=MEDIA)

    async def model(self, request: Request) -> Response:
        """What the model takes, and how good and how large it is."""
        return _json(self.state.current.facts())

    async def reload(self, request: Request) -> Response:
        """Looks for a new bundle at once, if this machine asks."""
        host = request.client.host if request.client else ""
        if not _is_here(host):
            return _refusal(RefusedError(403, "only this machine may ask for a reload"))
        done = await self.look(force=True)
        if self.state.failure is not None:
            return _refusal(RefusedError(409, self.state.failure))
        return _json({"reloaded": done, "model": self.state.current.id})

    async def look(self, *, force: bool = False) -> bool:
        """Loads a new bundle if there is one, beside the requests; whether there was."""
        before, loop = self.state.failure, asyncio.get_running_loop()
        done = await loop.run_in_executor(self.loader, lambda: self.state.reload(force=force))
        if done:
            self.say(f"now serving model {self.state.current.id}")
        elif self.state.failure not in (None, before):
            self.say(f"warning: the new bundle is refused, and the old model stays: {self.state.failure}")
        return done

    async def _body(self, request: Request) -> bytes:
        most = self.limits.max_bytes
        rule = f"a request must have at most {most} bytes"
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > most:
            raise RefusedError(413, f"{rule}, but has {length}")
        parts, size = [], 0
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for part in request.stream():
                    size += len(part)
                    if size > most:
                        raise RefusedError(413, f"{rule}, but has more")
                    parts.append(part)
        except TimeoutError:
            raise RefusedError(408, f"a body must arrive within {self.limits.body_seconds:g} s") from None
        except ClientDisconnect:
            raise RefusedError(400, "the client left before the body was there") from None
        return b"".join(parts)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        watch = asyncio.create_task(self._watch()) if self.reload_every else None
        self.started()
        yield
        if watch:
            watch.cancel()
        for pool in (self.scorer, self.loader):
            pool.shutdown(wait=False)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(self.reload_every)
            await self.look()

    def _counted(self, app: ASGIApp, known: set[str]) -> ASGIApp:
        """The application, with its answers counted by path and status."""

        async def counted(scope: Scope, receive: Receive, send: Send) -> None:
            async def seen(message: Message) -> None:
                if message["type"] == "http.response.start":
                    self.metrics.requests[path, message["status"]] += 1
                await send(message)

            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            path = scope["path"] if scope["path"] in known else "other"
            await app(scope, receive, seen)

        return counted


def _answer(model: Loaded, kind: str, body: bytes, arrow: bool) -> tuple[Array, bytes]:
    """The ids of a body, and the content of its answer."""
    ids = model.reader.arrow(body) if kind == ARROW else model.reader.json(body)
    found, further = model.predict_all(ids)
    classes = model.bundle.schema.classes
    if not arrow:
        of_classes = dict(zip(classes.names, found.T.tolist(), strict=True)) if classes else None
        node: dict[str, object] = {"predictions": found.tolist() if of_classes is None else of_classes}
        if further:
            node["auxiliary"] = {label: own.tolist() for label, own in further.items()}
        return ids, json.dumps({**node, "model": model.id}).encode()
    stream = io.BytesIO()
    columns = [found, *further.values()] if classes is None else list(found.T)
    pl.DataFrame(columns, prediction_columns(model.bundle.schema)).write_ipc_stream(stream)
    return ids, stream.getvalue()


def _kind(request: Request) -> str:
    """How the body is written; RefusedError if it is neither JSON nor Arrow."""
    kind = request.headers.get("content-type", JSON).partition(";")[0].strip().lower()
    if kind not in (JSON, ARROW):
        raise RefusedError(415, f"content-type must be {JSON} or {ARROW}, but got {kind[:80]}")
    if request.headers.get("content-encoding", "identity") != "identity":
        raise RefusedError(415, "the body must not be compressed")
    return kind


def _json(node: dict[str, object], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    content = json.dumps(node, default=str).encode()
    return Response(content, status, _NO_CACHE | (headers or {}), JSON)


def _refusal(refused: RefusedError, headers: dict[str, str] | None = None) -> Response:
    return _json(refused.node(), refused.status, headers)


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
