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
from .._frames import MOST_FRAMES, encode_frames
from .._image import kind_of, load_image
from .._predictor import Predictor
from ..errors import ImageInputError
from ._errors import BadRequestError
from ._metrics import Metrics
from ._options import ServeOptions
from ._queue import Ticket, WorkQueue
from ._request import Fields, read_fields
from ._store import ImageStore, StoredImage

if TYPE_CHECKING:
    from PIL import Image

    from .._clip import EncodedClip

__all__ = ["ClientGone", "FrameNeededError", "Service", "Source", "picture", "png"]

Result = TypeVar("Result")


class ClientGone(Exception):  # noqa: N818 - nothing is wrong, there is nobody left to be told
    """The client closed the connection before it was answered."""


class FrameNeededError(ImageInputError):
    """The object holds several frames and none was named; their number goes with the error."""

    def __init__(self, error: ImageInputError, frames: int) -> None:
        super().__init__(str(error))
        self.type = type(error).__name__
        self.frames = frames


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """The image that a request is about: bytes of its own, or one that is kept."""

    name: str
    """As `image` of the result: the id, or the file name that came with the bytes."""
    data: bytes
    frame: int | None
    frames: int | None = None
    """How many frames of a clip are taken as one."""
    stored: EncodedImage | EncodedClip | None = None

    def encoded(self, predictor: Predictor) -> EncodedImage | EncodedClip:
        """The image, or frames of the clip, encoded now unless they are kept."""
        if self.stored is not None:
            return self.stored
        with self.frames_told():
            return encode_frames(predictor, self.data, self.frame, self.frames)

    def one_image(self, predictor: Predictor) -> EncodedImage:
        """The image, encoded now unless it is kept.

        Raises:
            BadRequestError: A clip is kept under the id.
            FrameNeededError: It has several frames, and none is named.
        """
        if self.stored is None:
            with self.frames_told():
                return predictor.encode(self.data, frame=self.frame)
        if isinstance(self.stored, EncodedImage):
            return self.stored
        raise BadRequestError(
            "the id is that of a clip, and this is shown on one image; send the file again with "
            "the 'frame' that is meant"
        )

    @contextlib.contextmanager
    def frames_told(self) -> Iterator[None]:
        """Turn the error of a missing frame number into one that carries the number of frames."""
        frames = 1
        try:
            yield
        except ImageInputError as error:
            if self.frame is not None or self.frames is not None:
                raise
            with contextlib.suppress(ImageInputError):
                frames = _count_frames(self.data)
            if frames > 1:
                raise FrameNeededError(error, frames) from error
            raise

    def pixels(self) -> tuple[Any, int]:
        """(H, W, 1 or 3) uint8, and the number of frames in the object."""
        with self.frames_told():
            loaded = load_image(self.data, frame=self.frame)
        if loaded.dicom is not None:
            return loaded.pixels, loaded.dicom.frames
        return loaded.pixels, _count_frames(self.data) if kind_of(self.data) == "clip" else 1


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

    def source(self, fields: Fields, *, clips: bool = False) -> Source:
        """The image of a request.

        Args:
            fields: What was sent.
            clips: Whether several frames may be taken as one clip.

        Raises:
            BadRequestError: No image, or two of them.
            NotFoundError: The id is not (or no longer) known.
        """
        identifier, frame = fields.take_text("image_id"), fields.take_whole("frame")
        frames = fields.take_whole("frames") if clips else None
        if frames is not None and frames > MOST_FRAMES:
            raise BadRequestError(f"'frames' must be at most {MOST_FRAMES}")
        if (identifier is None) == (fields.image is None):
            raise BadRequestError(
                "give either an image (the body, or the part 'image' of multipart/form-data) or "
                "the 'image_id' that /v1/images gave"
            )
        if identifier is None:
            if frame is not None and frames is not None:
                raise BadRequestError("'frame' and 'frames' are both given; give one of the two")
            return Source(fields.filename, fields.image or b"", frame, frames)
        if frame is not None or frames is not None:
            raise BadRequestError("the frame was chosen when the image was sent; leave it out")
        stored = self.images.get(identifier)
        return Source(identifier, stored.data, stored.frame, stored=stored.encoded)

    def keep(self, source: Source, encoded: EncodedImage | EncodedClip) -> str:
        """Keep an image or a clip for questions; its id."""
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


def _count_frames(data: bytes) -> int:
    """How many frames a DICOM object or a clip has.

    Raises:
        ImageInputError: It is neither, or cannot be decoded.
    """
    if kind_of(data) == "clip":
        from .._video import load_clip

        return load_clip(data, 1).total
    loaded = load_image(data, frame=1)
    return loaded.dicom.frames if loaded.dicom is not None else 1


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
