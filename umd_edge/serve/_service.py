"""What the routes share: the predictor, the queue, the images kept, and the work on one image."""

from __future__ import annotations

import asyncio
import contextlib
import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import Request

from .._encoded import EncodedImage
from .._image import load_image
from .._predictor import Predictor
from ..errors import DicomInputError
from ._errors import BadRequestError
from ._metrics import Metrics
from ._options import ServeOptions
from ._queue import Ticket, WorkQueue
from ._request import Fields, read_fields
from ._store import ImageStore, StoredImage

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["ClientGone", "FrameNeededError", "Service", "Source", "picture", "png"]

Result = TypeVar("Result")


class ClientGone(Exception):  # noqa: N818 - nothing is wrong, there is nobody left to be told
    """The client closed the connection before it was answered."""


class FrameNeededError(DicomInputError):
    """The object holds several frames and none was named; their number goes with the error."""

    def __init__(self, message: str, frames: int) -> None:
        super().__init__(message)
        self.frames = frames


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """The image that a request is about: bytes of its own, or one that is kept."""

    name: str
    """As `image` of the result: the id, or the file name that came with the bytes."""
    data: bytes
    frame: int | None
    stored: EncodedImage | None = None

    def encoded(self, predictor: Predictor) -> EncodedImage:
        """The image, encoded now unless it is kept."""
        if self.stored is not None:
            return self.stored
        with self.frames_told():
            return predictor.encode(self.data, frame=self.frame)

    @contextlib.contextmanager
    def frames_told(self) -> Iterator[None]:
        """Turn the error of a missing frame number into one that carries the number of frames."""
        frames = 1
        try:
            yield
        except DicomInputError as error:
            if self.frame is not None:
                raise
            with contextlib.suppress(DicomInputError):
                loaded = load_image(self.data, frame=1)
                if loaded.dicom is not None:
                    frames = loaded.dicom.frames
            if frames > 1:
                raise FrameNeededError(str(error), frames) from error
            raise

    def pixels(self) -> tuple[Any, int]:
        """(H, W, 1 or 3) uint8, and the number of frames in the object."""
        with self.frames_told():
            loaded = load_image(self.data, frame=self.frame)
        return loaded.pixels, loaded.dicom.frames if loaded.dicom is not None else 1


class Service:
    """One bundle behind one queue."""

    def __init__(self, predictor: Predictor, options: ServeOptions) -> None:
        self.predictor = predictor
        self.options = options
        self.stopping = False
        self.queue = WorkQueue(
            workers=options.workers,
            waiting=options.queue,
            most_bytes=options.most_buffered_bytes,
        )
        self.images = ImageStore(
            most=options.images, most_bytes=options.image_bytes, ttl_s=options.image_ttl_s
        )
        self.metrics = Metrics(predictor, self.queue, self.images)

    async def read(self, request: Request, ticket: Ticket) -> Fields:
        """The query and the body of a request; see `read_fields`."""
        deadline = request.scope["umd_edge.deadline"]
        return await read_fields(request, self.options, ticket, deadline)

    def source(self, fields: Fields) -> Source:
        """The image of a request.

        Raises:
            BadRequestError: No image, or two of them.
            NotFoundError: The id is not (or no longer) known.
        """
        identifier, frame = fields.take_text("image_id"), fields.take_whole("frame")
        if (identifier is None) == (fields.image is None):
            raise BadRequestError(
                "give either an image (the body, or the part 'image' of multipart/form-data) or "
                "the 'image_id' that /v1/images gave"
            )
        if identifier is None:
            return Source(fields.filename, fields.image or b"", frame)
        if frame is not None:
            raise BadRequestError("the frame was chosen when the image was sent; leave it out")
        stored = self.images.get(identifier)
        return Source(identifier, stored.data, stored.frame, stored.encoded)

    def keep(self, source: Source, encoded: EncodedImage) -> str:
        """Keep an image for questions; its id."""
        return self.images.add(StoredImage(encoded, source.data, source.frame))

    async def work(
        self,
        request: Request,
        ticket: Ticket,
        work: Callable[[], Result],
    ) -> Result:
        """Run a job in a worker, for as long as the client waits and may wait.

        Raises:
            DeadlineExceededError: It took too long.
            ClientGone: The client did not wait.
        """
        route = request.scope["umd_edge.route"]

        def timed() -> Result:
            with self.metrics.work_seconds.labels(route).time():
                return work()

        deadline = request.scope["umd_edge.deadline"]
        job = asyncio.ensure_future(self.queue.run(ticket, timed, deadline))
        gone = asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({job, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not job.done():
                raise ClientGone
            return job.result()
        finally:
            job.cancel()
            gone.cancel()

    def count(self, line: Mapping[str, Any]) -> None:
        """Count a result: its task, its status, its times."""
        answers = line.get("answers", [line])
        for answer in answers:
            task = line.get("task", "ask")
            self.metrics.results.labels(task, answer["status"]).inc()
        for stage, milliseconds in line["timing_ms"].items():
            self.metrics.stage_seconds.labels(stage).inc(milliseconds / 1e3)

    @property
    def problem(self) -> str:
        """Why no more requests should be sent here, or nothing."""
        if self.stopping:
            return "stopping"
        if self.queue.stuck >= self.queue.workers:
            return "every worker hangs in a job that nobody waits for; restart the service"
        return ""


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def picture(pixels: Any, side: int) -> bytes:
    """A PNG of (H, W, 1 or 3) uint8, made smaller where a side is longer than `side`."""
    from PIL import Image

    return png(Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels), side)


def png(image: Image.Image, side: int | None) -> bytes:
    """The bytes of a PNG file; the image itself is made smaller."""
    if side is not None:
        image.thumbnail((side, side))
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=3)
    return out.getvalue()
