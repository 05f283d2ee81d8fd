"""The server's paths: /detect, /draw, /health and /metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Annotated, Any

import cv2
import fastapi
import numpy as np
from fastapi import Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect

from directdet import __version__
from directdet.common.errors import UserError
from directdet.data.picture_size import declared_size
from directdet.data.pixels.format import PixelFormat
from directdet.infer.detections import Detections
from directdet.infer.draw import draw
from directdet.infer.predict.options import PredictOptions, Selection
from directdet.infer.predict.reading import decode_picture
from directdet.infer.predictor import Predictor
from directdet.serve.batches import Batches, Full
from directdet.serve.form import form_page
from directdet.serve.metrics import CONTENT_TYPE, Metrics
from directdet.serve.options import ServeOptions

_ANSWERED = ("/detect", "/draw")  # the paths that are counted; others are none of ours
_FORM_PARTS = 4  # of an upload: the picture, and what a form adds
_FORM_BYTES = 65_536  # what its headers may take beside the picture

Score = Annotated[float | None, Query(ge=0, le=1, description="Leave out what has a lower score.")]
Classes = Annotated[str | None, Query(description="Names of the only classes to return, as person,car.")]
Masks = Annotated[bool, Query(description="Also return masks, as COCO's compressed run lengths.")]


class Refused(Exception):
    """An answer that says no: its HTTP status, and why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


def batch_size(detector: Predictor, options: ServeOptions) -> int:
    """The most pictures of a batch: as asked for, else as many as the network takes at once, or 1."""
    shapes = detector.meta.get("shapes")
    usual = shapes.get("batch", {}).get("opt", 1) if isinstance(shapes, dict) else 1
    return options.batch or detector.backend.input.batch or int(usual)


def make_app(detector: Predictor, options: ServeOptions) -> fastapi.FastAPI:
    """The application around a loaded detector; it starts and ends the thread that runs it."""
    metrics, state = Metrics(), _State(options.queue)
    usual = detector.usual_scores if options.score is None else options.score

    @contextlib.asynccontextmanager
    async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
        size = batch_size(detector, options)
        state.batches = Batches(detector, size, options.wait_ms / 1000, options.queue, metrics.batch)
        yield
        await run_in_threadpool(state.batches.close)

    # No pages of interactive documentation: they load scripts from elsewhere. /openapi.json describes the paths.
    app = fastapi.FastAPI(title="directdet", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)

    @app.middleware("http")
    async def count(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        path = request.url.path
        if path not in _ANSWERED:
            return await call_next(request)
        start, status = time.perf_counter(), 500
        try:
            response = await call_next(request)
            status = response.status_code
            return response
        finally:
            metrics.request(path, status, time.perf_counter() - start)

    @app.exception_handler(Refused)
    async def refuse(request: Request, error: Refused) -> Response:
        headers = {"Retry-After": "1"} if error.status == 503 else {}
        if error.status in (408, 413, 503):
            headers["Connection"] = "close"  # what is left of the upload is not read
        return _Json({"error": error.message}, error.status, headers)

    pixels = detector.preprocess.pixels

    async def answer(request: Request, score: float | None, classes: str | None) -> tuple[np.ndarray, Detections]:
        """The picture of a request and what was found in it."""
        keep = _selection(detector, usual if score is None else score, classes)
        with state.place():
            content = await _upload(request, options)
            image = await run_in_threadpool(_decode, content, options, pixels)
            try:
                found = await asyncio.wrap_future(state.running().submit(image))
            except Full as error:
                raise Refused(503, f"{error}; try again") from None
            except UserError as error:
                raise Refused(500, str(error)) from None
        kept = keep(found)
        metrics.found(len(kept))
        return image, kept

    @app.post("/detect")
    async def detect(request: Request, score: Score = None, classes: Classes = None, masks: Masks = False) -> Any:
        """The detections in an uploaded picture: the body of the request, or the file of a form."""
        image, found = await answer(request, score, classes)
        return _Json(await run_in_threadpool(_as_json, image, found, masks))

    @app.post("/draw", response_class=Response)
    async def drawn(request: Request, score: Score = None, classes: Classes = None) -> Response:
        """The uploaded picture with boxes, masks and names on it, as JPEG."""
        image, found = await answer(request, score, classes)
        return Response(await run_in_threadpool(_as_jpeg, pixels.drawable(image), found), media_type="image/jpeg")

    @app.get("/health")
    async def health() -> Response:
        """200 while pictures are taken, else 503."""
        alive = state.batches is not None and state.batches.alive
        about = {"status": "ok" if alive else "stopping", **detector.describe(), "classes": list(detector.classes)}
        return _Json(about, 200 if alive else 503)

    @app.get("/metrics")
    async def prometheus() -> PlainTextResponse:
        """Counters in Prometheus's text format."""
        waiting = 0 if state.batches is None else state.batches.waiting()
        text = metrics.text({"requests_now": state.inside, "pictures_waiting": waiting})
        return PlainTextResponse(text, media_type=CONTENT_TYPE)

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        """A form to try it with."""
        return form_page(detector, usual)

    return app


class _Json(JSONResponse):
    """JSON in ASCII: the name of a class may hold half a surrogate pair, which UTF-8 cannot write."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, allow_nan=False, separators=(",", ":")).encode("ascii")


class _State:
    """What the requests of one server share."""

    def __init__(self, most: int) -> None:
        self.batches: Batches | None = None
        self.inside, self._most = 0, most

    @contextlib.contextmanager
    def place(self) -> Any:
        """A place among the requests that are worked on; Refused if there is none. Only for the event loop's thread."""
        if self.inside >= self._most:
            raise Refused(503, f"{self._most} requests are being worked on, as many as may; try again")
        self.inside += 1
        try:
            yield
        finally:
            self.inside -= 1

    def running(self) -> Batches:
        if self.batches is None:
            raise Refused(503, "the server is starting; try again")
        return self.batches


def _selection(detector: Predictor, score: float | Sequence[float], classes: str | None) -> Selection:
    names = None if classes is None else [name.strip() for name in classes.split(",")]
    try:
        return PredictOptions(score, names).selection(detector)
    except UserError as error:
        raise Refused(422, str(error)) from None


async def _upload(request: Request, options: ServeOptions) -> bytes:
    """The bytes of the picture; reading ends where there are more than may be, whatever the headers say."""
    form = request.headers.get("content-type", "").startswith("multipart/form-data")
    most = options.max_bytes + (_FORM_BYTES if form else 0)
    too_large = Refused(413, f"the upload is larger than {options.max_bytes} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise too_large
    read = 0

    async def limited() -> Any:
        nonlocal read
        message = await request.receive()
        read += len(message.get("body", b""))
        if read > most:
            raise too_large
        return message

    inner = Request(request.scope, limited)
    try:
        async with asyncio.timeout(options.upload_seconds):
            content = await _of_form(inner) if form else await inner.body()
    except TimeoutError:
        raise Refused(408, f"the upload took longer than {options.upload_seconds:g} seconds") from None
    except (MultiPartException, fastapi.HTTPException) as error:
        words = getattr(error, "detail", None) or getattr(error, "message", "")
        raise Refused(400, f"the form cannot be read: {words}") from None
    except ClientDisconnect:
        raise Refused(400, "the connection ended before the picture did") from None
    if len(content) > options.max_bytes:
        raise too_large
    if not content:
        raise Refused(400, "no picture: send its bytes as the body, or as the file of a form")
    return content


async def _of_form(request: Request) -> bytes:
    async with request.form(max_files=1, max_fields=_FORM_PARTS) as fields:
        for value in fields.values():
            if not isinstance(value, str):
                return await value.read()
    return b""


def _decode(content: bytes, options: ServeOptions, pixels: PixelFormat) -> np.ndarray:
    """The picture as the detector takes it, turned as a viewer shows the photo."""
    size = declared_size(content)
    too_many = f"more than {options.max_pixels} pixels; make it smaller"
    if size is not None and size[0] * size[1] > options.max_pixels:
        raise Refused(413, f"a picture of {size[1]} x {size[0]} pixels, {too_many}")
    try:
        image = decode_picture(content, "the upload", True, pixels)[0]
    except UserError as error:
        raise Refused(400, str(error)) from None
    if image.shape[0] * image.shape[1] > options.max_pixels:  # of a format whose header was not read
        raise Refused(413, f"a picture of {image.shape[1]} x {image.shape[0]} pixels, {too_many}")
    return image


def _as_json(image: np.ndarray, found: Detections, masks: bool) -> dict[str, Any]:
    entries = found.to_coco(0) if masks and found.masks is not None else [{}] * len(found)
    rows = [
        {"class": one.name, "label": one.label, "score": one.score, "box": one.box.tolist()}
        | ({"mask": entry["segmentation"]} if "segmentation" in entry else {})
        for one, entry in zip(found, entries, strict=True)
    ]
    return {"width": image.shape[1], "height": image.shape[0], "detections": rows}


def _as_jpeg(image: np.ndarray, found: Detections) -> bytes:
    return cv2.imencode(".jpg", draw(image, found, found.classes), [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
