"""Small generated clips, written by PyAV."""

from __future__ import annotations

import io
from typing import Any

import numpy as np


def moving_bar(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """(count, H, W) uint8: a bright bar whose place says which frame it is, on a soft ground."""
    ground = np.linspace(20, 90, width).astype(np.uint8)
    frames = np.repeat(ground[None, None], height, axis=1).repeat(count, axis=0)
    for number in range(count):
        start = number * (width - 8) // max(1, count - 1)
        frames[number, :, start : start + 8] = 220
    return frames


def make_clip(
    frames: np.ndarray, kind: str = "mp4", codec: str = "mpeg4", rate: int = 25, **options: Any
) -> bytes:
    """A clip of grey frames (N, H, W) uint8.

    Args:
        frames: What it shows.
        kind: Container: mp4, avi, mpeg, mpegts or mpeg2video (no container).
        codec: Of ffmpeg.
        rate: Frames a second.
        **options: Of the codec.
    """
    import av

    out = io.BytesIO()
    with av.open(out, "w", format=kind) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.height, stream.width = frames.shape[1:]
        stream.pix_fmt = "gray" if codec == "ffv1" else "yuv420p"
        stream.bit_rate = 4_000_000
        for pixels in frames:
            colour = np.repeat(pixels[..., None], 3, axis=2)
            for packet in stream.encode(av.VideoFrame.from_ndarray(colour, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return out.getvalue()
