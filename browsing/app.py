"""The page's server as an ASGI application: the page, its data as JSON, and pictures. It serves no other file.

Requests to names of other machines are refused, so that another site's name that is made to point here reads nothing;
and so are changes that another site's page asks for.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from browsing.collection import MOST_ROWS, Collection, OpenSet, Picture, Unknown
from browsing.marks import Marks
from shards.errors import UserError
from shards.printable import os_error_text
from shards.strict_json import parse_json

if TYPE_CHECKING:
    from browsing.predicted import PredictedFile

HOSTS = ("127.0.0.1", "localhost")
_PAGE = Path(__file__).parent / "page"
_SCRIPTS = ("browse", "common", "grid", "marks", "predictions", "sample")
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    **{f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8") for name in _SCRIPTS},
    "/browse.css": ("browse.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_KEEP = "private, max-age=604800, immutable"  # a picture's address changes with the set
_MOST_BODY = 1 << 16  # bytes
_MOST_NUMBER = 15  # digits
Handler = Callable[[Request], Awaitable[Response]]


class SafeHeaders:
    """Adds the headers that keep the page apart from other sites to every answer; an ASGI middleware."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(name.lower().encode(), value.encode()) for name, value in _HEADERS.items()]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        await self._app(scope, receive, send_with_headers)


def make_app(
    collection: Collection,
    marks: Mapping[str, Marks],
    start: Mapping[str, Any] | None = None,
    predicted: PredictedFile | None = None,
) -> Starlette:
    """Return the application that shows a collection.

    Args:
        marks: where the marks of each set are kept, by the set's name.
        predicted: predictions to show beside the truth.
        start: what the page begins with where its address says nothing, such as {"where": "area > 0.01"}.
    """
    files = {path: (_PAGE / name).read_bytes() for path, (name, _) in _FILES.items()}

    async def page(request: Request) -> Response:
        path = request.url.path
        return Response(files[path], media_type=_FILES[path][1], headers={"Cache-Control": "no-cache"})

    def sets(request: Request) -> Any:
        name = "" if predicted is None else predicted.path.name
        return {"sets": collection.about_sets(), "start": dict(start or {}), "predictions": name}

    def columns(request: Request) -> Any:
        return collection.columns(_set_of(collection, request))

    def rows(request: Request) -> Any:
        one, where, sort = _view_of(collection, request)
        begin, count = _number(request, "begin", 0), _number(request, "count", 100)
        return collection.rows(one, where, sort, begin, min(count, MOST_ROWS))

    def place(request: Request) -> Any:
        one, where, sort = _view_of(collection, request)
        return collection.place(one, where, sort, request.path_params["position"])

    def sample(request: Request) -> Any:
        return collection.sample(_set_of(collection, request), request.path_params["position"])

    def ledger(request: Request) -> Any:
        reason = request.query_params.get("reason", "")
        return collection.ledger(_set_of(collection, request), _number(request, "begin", 0), reason, MOST_ROWS // 5)

    def picture(request: Request) -> Picture:
        query = request.query_params
        one = _set_of(collection, request)
        masks = query.get("masks") != "0"
        return collection.picture(one, request.path_params["position"], query.get("objects"), masks)

    def layer(request: Request) -> Picture:
        at = request.path_params
        objects = request.query_params.get("objects")
        return collection.layer(_set_of(collection, request), at["position"], at["frame"], at["layer"], objects)

    def predictions(request: Request) -> Any:
        sort = request.query_params.get("sort", "")
        begin, count = _number(request, "begin", 0), _number(request, "count", 24)
        return _given(predicted).rows(sort, begin, min(count, MOST_ROWS))

    def predicted_mask(request: Request) -> Picture:
        return _given(predicted).mask(request.path_params["number"])

    def marks_of(request: Request) -> Any:
        name = _set_of(collection, request).name
        return {"marks": marks[name].of(name)}

    def export(request: Request) -> Picture:
        one = _set_of(collection, request)
        return Picture(marks[one.name].to_parquet(one.name, one.shards), "application/vnd.apache.parquet")

    async def mark(request: Request) -> Response:
        try:
            body = await _body_of(request)
            return json_response(await run_in_threadpool(_mark, collection, marks, request.path_params["set"], body))
        except (UserError, OSError) as error:
            return _error(error)

    of_sample = "/api/{set}/{position:int}"
    routes = [Route(path, page) for path in _FILES]
    routes += [
        Route("/api/sets", _json(sets)),
        Route("/predictions", _json(predictions)),
        Route("/predictions/{number:int}/mask", _bytes(predicted_mask, "no-cache")),
        Route("/api/{set}/columns", _json(columns)),
        Route("/api/{set}/rows", _json(rows)),
        Route("/api/{set}/ledger", _json(ledger)),
        Route("/api/{set}/marks", _json(marks_of), methods=["GET"]),
        Route("/api/{set}/marks", mark, methods=["POST"]),
        Route("/api/{set}/marks.parquet", _bytes(export, "no-store")),
        Route(of_sample, _json(sample)),
        Route(f"{of_sample}/place", _json(place)),
        Route(f"{of_sample}/picture", _bytes(picture, _KEEP)),
        Route(f"{of_sample}/{{frame:int}}/{{layer}}", _bytes(layer, _KEEP)),
    ]
    hosts = Middleware(TrustedHostMiddleware, allowed_hosts=[*HOSTS], www_redirect=False)
    return Starlette(routes=routes, middleware=[Middleware(SafeHeaders), hosts])


def _json(handler: Callable[[Request], Any]) -> Handler:
    """Return a route that answers with a handler's value as JSON; what the user can mend is one line."""

    async def answer(request: Request) -> Response:
        try:
            return json_response(await run_in_threadpool(handler, request))
        except (UserError, OSError) as error:
            return _error(error)

    return answer


def _bytes(handler: Callable[[Request], Picture], cache: str) -> Handler:
    """Return a route that answers with a picture or file, or with one line of JSON that says why there is none."""

    async def answer(request: Request) -> Response:
        try:
            made = await run_in_threadpool(handler, request)
        except (UserError, OSError) as error:
            return _error(error)
        return Response(made.data, media_type=made.kind, headers={"Cache-Control": cache})

    return answer


def json_response(value: Any, status: int = 200) -> Response:
    """Return an answer in JSON. All but ASCII is escaped: a text may hold half a surrogate pair."""
    data = json.dumps(value, ensure_ascii=True).encode("ascii")
    return Response(data, status, media_type="application/json", headers={"Cache-Control": "no-store"})


def _error(error: UserError | OSError) -> Response:
    text = str(error) if isinstance(error, UserError) else os_error_text(error)
    return json_response({"error": text}, 404 if isinstance(error, Unknown) else 422)


async def _body_of(request: Request) -> Any:
    """Return the JSON of a request that changes something.

    Raises:
        UserError: it comes from another site's page, is too large, or is no JSON.
    """
    origin = request.headers.get("origin")
    own = f"http://{request.headers.get('host', '')}"
    if (origin is not None and origin != own) or request.headers.get("content-type") != "application/json":
        raise UserError("not asked for by this page", met=str(origin)[:80], wanted=own)
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BODY:
            raise UserError("a request that is too large", wanted=f"at most {_MOST_BODY} bytes")
    try:
        return parse_json(body)
    except ValueError as error:
        raise UserError("not JSON", met=str(error)[:80]) from None


def _mark(collection: Collection, marks: Mapping[str, Marks], name: str, body: Any) -> dict[str, Any]:
    """Give a mark: `position` of a sample, `object` in it or null, `mark`."""
    one = collection.get(name)
    values = body if isinstance(body, dict) else {}
    position, number, mark = (values.get(key) for key in ("position", "object", "mark"))
    is_object = number is None or type(number) is int
    if type(position) is not int or not 0 <= position < len(one.shards) or not isinstance(mark, str) or not is_object:
        raise UserError("not a mark", met=str(body)[:80], wanted="position, object and mark")
    key = one.shards.key(position)
    marks[name].give(name, key, number, mark)
    return {"key": key, "object": number, "mark": mark}


def _given(predicted: PredictedFile | None) -> PredictedFile:
    if predicted is None:
        raise Unknown("no predictions", do="start with --predictions FILE")
    return predicted


def _set_of(collection: Collection, request: Request) -> OpenSet:
    return collection.get(request.path_params["set"])


def _view_of(collection: Collection, request: Request) -> tuple[OpenSet, str, str]:
    """Return the set, the condition and the order that a request asks for."""
    query = request.query_params
    return _set_of(collection, request), query.get("where", ""), query.get("sort", "")


def _number(request: Request, name: str, default: int) -> int:
    """Return a number of a request's query; raises `UserError` where it is none."""
    text = request.query_params.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_NUMBER):
        raise UserError("not a number", where=name, met=text[:40], wanted="0 or more")
    return int(text)
