"""Small videos, made by PyAV in memory."""

import io

import numpy as np
import pytest


def plain_video(count: int, *, level: int = 0, colour: tuple[int, int, int] = (0, 0, 0), rate: int = 10) -> bytes:
    """An .mp4 of `count` frames of one colour, frame i lighter by `level` times i; skips without PyAV."""
    av = pytest.importorskip("av")
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "1", "g": "12"})
        stream.width = stream.height = 64
        for i in range(count):
            pixels = np.full((64, 64, 3), colour, np.uint8) + np.uint8(level * i)
            frame = av.VideoFrame.from_ndarray(pixels, "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()
