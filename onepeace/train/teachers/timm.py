"""Networks of timm as teachers of pictures."""

from typing import Any

import torch
from torch import Tensor

from onepeace.model.stems.timm import create_network
from onepeace.train.teachers.items import Teacher, autocast


def timm_teacher(name: str, modality: str = "image", output: str = "features") -> Teacher:
    """A network with its own preprocessing: PIL pictures -> pooled features (n, C), or class scores (n, K)."""
    from timm import data

    model = create_network(name, pretrained=True).to(memory_format=torch.channels_last)
    transform = data.create_transform(**data.resolve_model_data_config(model), is_training=False)

    def encode(pictures: list[Any]) -> Tensor:
        pixels = torch.stack([transform(picture.convert("RGB")) for picture in pictures])
        with torch.inference_mode(), autocast(torch.device("cpu")):
            features = model.forward_features(pixels.contiguous(memory_format=torch.channels_last))
            return model.forward_head(features, pre_logits=output == "features").float()

    return encode
