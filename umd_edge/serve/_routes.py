"""The routes: each takes a request apart, lets a worker do the work, and gives the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from importlib import resources
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from .. import __version__
from .._demo import QUESTIONS
from .._describe import describe_bundle
from .._encoded import EncodedImage
from .._explain import proven_methods
from .._overlay import draw_explanation
from .._results import answers_to_dict
from .._task import TaskSpec
from .._task_table import check_question
from ._answers import JSONAnswer
from ._errors import BadRequestError
from ._request import Fields
from ._service import Service, Source, picture, png

__all__ = ["OPEN_PATHS", "Handler", "handlers"]

Handler = Callable[[Request], Awaitable[Response]]

_PAGE_FILES = ("page.css", "page.js", "results.js", "service.js")
OPEN_PATHS = frozenset(
    {"/", "/favicon.ico", "/healthz", "/readyz", *(f"/{name}" for name in _PAGE_FILES)}
)
"""Shown without a token: they say nothing about images or the bundle."""

_MOST_QUESTIONS = 64
_SHOWN_SIDE = 1024
_PAGE_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript"}


def handlers(service: Service) -> dict[tuple[str, str], Handler]:
    """(method, path) -> handler."""
    routes = _Routes(service)
    return {
        ("GET", "/"): _page("index.html"),
        **{("GET", f"/{name}"): _page(name) for name in _PAGE_FILES},
        ("GET", "/favicon.ico"): _no_icon,
        ("GET", "/healthz"): routes.health,
        ("GET", "/readyz"): routes.ready,
        ("GET", "/metrics"): routes.metrics,
        ("GET", "/openapi.json"): routes.openapi,
        ("GET", "/v1/info"): routes.info,
        ("GET", "/v1/tasks"): routes.tasks,
        ("POST", "/v1/classify"): routes.classify,
        ("POST", "/v1/ask"): routes.ask,
        ("POST", "/v1/explain"): routes.explain,
        ("POST", "/v1/images"): routes.add_image,
        ("DELETE", "/v1/images/{id}"): routes.remove_image,
        ("POST", "/v1/preview"): routes.preview,
    }


def _page(name: str) -> Handler:
    kind = _PAGE_TYPES[name.rsplit(".", 1)[1]] + "; charset=utf-8"
    content = (resources.files(__package__) / "page" / name).read_bytes()

    async def handler(request: Request) -> Response:
        return Response(content, media_type=kind)

    return handler


async def _no_icon(request: Request) -> Response:
    return Response(status_code=204)


class _Routes:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._predictor = service.predictor

    async def health(self, request: Request) -> Response:
        return JSONAnswer({"status": "ok"})

    async def ready(self, request: Request) -> Response:
        problem = self._service.problem
        return JSONAnswer({"status": problem or "ready"}, status_code=503 if problem else 200)

    async def metrics(self, request: Request) -> Response:
        metrics = self._service.metrics
        return Response(metrics.render(), headers={"content-type": metrics.media_type})

    async def openapi(self, request: Request) -> Response:
        from ._openapi import describe

        return JSONAnswer(describe(self._service.options, self._predictor))

    async def info(self, request: Request) -> Response:
        options = self._service.options
        document = {
            **describe_bundle(self._predictor.bundle),
            "service": {
                "umd_edge": __version__,
                "variant": self._predictor.variant,
                "provider": self._predictor.provider,
                "workers": options.workers,
                "queue": options.queue,
                "max_request_bytes": options.max_request_bytes,
                "timeout_s": options.timeout_s,
                "image_ttl_s": options.image_ttl_s,
            },
        }
        return JSONAnswer(document)

    async def tasks(self, request: Request) -> Response:
        fields = {item.name: item for item in self._predictor.manifest.structured_fields}
        extensions = self._predictor.manifest.extensions

        def described(task: TaskSpec) -> dict[str, Any]:
            read = [fields[path] for path in task.structured_paths if path in fields]
            return {
                "name": task.name,
                "kind": task.kind,
                "outputs": list(task.outputs),
                "multi_label": task.multi_label,
                "reads_text": bool(task.text_paths),
                "reads": [
                    {
                        "name": item.name,
                        "kind": item.kind,
                        "unit": item.unit,
                        "unit_name": item.unit_name,
                        "categories": list(item.categories),
                    }
                    for item in read
                ],
                "proven_maps": proven_methods(extensions, task.name),
                "applies_to": {key: list(values) for key, values in task.applies_to.items()},
            }

        tasks = [described(task) for task in self._predictor.tasks]
        asks = any(task.kind == "vqa" for task in self._predictor.tasks)
        return JSONAnswer({"tasks": tasks, "suggestions": [*QUESTIONS.values()] if asks else []})

    async def classify(self, request: Request) -> Response:
        def prepare(fields: Fields) -> Callable[[Source], Mapping[str, Any]]:
            task = fields.take_text("task")
            given: dict[str, Any] = {
                "text": fields.take_text("text"),
                "structured": fields.take_object("structured"),
                "sensitivity": fields.take_number("sensitivity"),
                "specificity": fields.take_number("specificity"),
                "coverage": fields.take_number("coverage"),
            }
            _need("task", task)

            def predict(source: Source) -> Mapping[str, Any]:
                if source.stored is not None:
                    return source.stored.classify(str(task), **given).to_dict()
                if source.frames is None:
                    with source.frames_told():
                        return self._predictor.classify(
                            source.data, str(task), frame=source.frame, **given
                        ).to_dict()
                encoded = source.encoded(self._predictor)
                result = encoded.classify(str(task), **given)
                return replace(result, timing=encoded.timing + result.timing).to_dict()

            return predict

        return await self._line(request, prepare)

    async def ask(self, request: Request) -> Response:
        def prepare(fields: Fields) -> Callable[[Source], Mapping[str, Any]]:
            questions = fields.take_texts("question", "questions", most=_MOST_QUESTIONS)
            task, coverage = fields.take_text("task"), fields.take_number("coverage")
            for question in questions:
                check_question(question)

            def predict(source: Source) -> Mapping[str, Any]:
                encoded = source.encoded(self._predictor)
                answers = [
                    encoded.ask(question, task=task, coverage=coverage) for question in questions
                ]
                return answers_to_dict(answers, None if source.stored else encoded.timing)

            return predict

        return await self._line(request, prepare)

    async def explain(self, request: Request) -> Response:
        service = self._service
        with service.queue.admit() as ticket:
            fields = await service.read(request, ticket)
            given: dict[str, Any] = {
                name: fields.take_text(name)
                for name in ("question", "task", "label", "text", "method")
            }
            given["structured"] = fields.take_object("structured")
            given["unproven"] = fields.take_flag("unproven")
            as_picture = _is_picture(fields.take_text("format"))
            side = fields.take_whole("side")
            source = service.source(fields)
            fields.finish()

            def explained() -> dict[str, Any] | bytes:
                explanation = source.one_image(self._predictor).explain(**given)
                if not as_picture:
                    return explanation.to_dict()
                return png(draw_explanation(source.pixels()[0], explanation), side)

            result = await service.work(request, ticket, explained)
        if isinstance(result, bytes):
            return Response(result, media_type="image/png")
        return JSONAnswer({"image": source.name, "index": 0, **result})

    async def _line(
        self, request: Request, prepare: Callable[[Fields], Callable[[Source], Mapping[str, Any]]]
    ) -> Response:
        """What the command prints with `--json` for one image."""
        service = self._service
        with service.queue.admit() as ticket:
            fields = await service.read(request, ticket)
            predict = prepare(fields)
            source = service.source(fields, clips=True)
            fields.finish()
            result = await service.work(request, ticket, lambda: predict(source))
        line = {"image": source.name, "index": 0, **result}
        service.count(line)
        return JSONAnswer(line)

    async def add_image(self, request: Request) -> Response:
        service = self._service
        with service.queue.admit() as ticket:
            fields = await service.read(request, ticket)
            source = service.source(fields, clips=True)
            fields.finish()
            encoded = await service.work(request, ticket, lambda: source.encoded(self._predictor))
        answer: dict[str, Any] = {
            "image_id": service.keep(source, encoded),
            "expires_s": service.options.image_ttl_s,
            "frame": source.frame,
            "timing_ms": encoded.timing.to_dict(),
        }
        if isinstance(encoded, EncodedImage):
            answer["frames"] = 1 if encoded.dicom is None else encoded.dicom.frames
        else:
            answer["frames"] = encoded.frames.total
            answer["numbers"] = list(encoded.frames.numbers)
        return JSONAnswer(answer, status_code=201)

    async def remove_image(self, request: Request) -> Response:
        self._service.images.remove(request.path_params["id"])
        return Response(status_code=204)

    async def preview(self, request: Request) -> Response:
        def draw() -> tuple[bytes, int]:
            pixels, frames = source.pixels()
            return picture(pixels, side), frames

        service = self._service
        with service.queue.admit() as ticket:
            fields = await service.read(request, ticket)
            side = fields.take_whole("side") or _SHOWN_SIDE
            source = service.source(fields)
            fields.finish()
            drawn, frames = await service.work(request, ticket, draw)
        headers = {"x-image-frames": str(frames)}
        return Response(drawn, media_type="image/png", headers=headers)


def _is_picture(kind: str | None) -> bool:
    if kind not in (None, "json", "png"):
        raise BadRequestError("'format' must be json or png")
    return kind == "png"


def _need(name: str, value: object) -> None:
    if value is None:
        raise BadRequestError(f"{name!r} is missing")
