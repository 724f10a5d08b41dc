"""Depth as one more modality, as in ImageBind (arXiv 2305.05665): maps of one channel, bound to the pictures they were
taken with.

    onepeace train examples/depth.yaml model.from=RUN data.root=FOLDER

Shards hold KEY.jpg and KEY.depth.png, the distance of each pixel in millimetres (16 bits, 0 = unknown), as depth
cameras write it. The adapter is that of pictures with `channels: 1`; its weights are copied from it. Afterwards
`onepeace.load("runs/depth").encode([{"depth": "room.depth.png"}])` is a vector in the space of pictures and words.
"""

import io
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from onepeace.errors import UserError
from onepeace.files import source
from onepeace.files.picture import open_picture
from onepeace.model import ADAPTERS
from onepeace.model.adapters import ImageAdapter
from onepeace.processors import PROCESSORS, Processor


class DepthProcessor(Processor):
    """Nearness 1 / (1 + metres) of each pixel, 0 where it is unknown, as (1, height, width) between -1 and 1.

    Args:
        size: [height, width] of what the model reads.
    """

    key = "depth"
    suffixes = frozenset({".depth.png"})
    guessed = False  # a PNG is taken for a picture, unless it is said to be depth
    cast_inputs = frozenset({"pixels"})

    def __init__(self, *, size: Sequence[int] = (256, 256)) -> None:
        self.size_read = list(size)

    @property
    def settings(self) -> dict[str, object]:
        return {"size": self.size_read}

    @classmethod
    def matches(cls, item: object) -> bool:
        return False

    def decode(self, item: object) -> Tensor:
        name = source.describe(item)
        with open_picture(io.BytesIO(source.read_bytes(item)), name, ".png") as image:
            if not image.mode.startswith("I"):
                raise UserError(f"a map of depth has one channel of 16 bits, this file has {image.mode}", where=name)
            metres = torch.from_numpy(np.asarray(image, np.float32) / 1000)
        nearness = torch.where(metres > 0, 1 / (1 + metres), 0.0)
        return F.adaptive_avg_pool2d(nearness[None], self.size_read) * 2 - 1

    def collate(self, samples: list[Tensor]) -> dict[str, Tensor]:
        return {"pixels": torch.stack(samples)}

    def size(self, sample: Tensor) -> int:
        return 0  # all are of one size


ADAPTERS["depth"] = ImageAdapter
PROCESSORS["depth"] = DepthProcessor
