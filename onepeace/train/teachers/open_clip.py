"""Models of open_clip as teachers of pictures and texts, with their own preprocessing."""

from typing import Any

import torch
from torch import Tensor

from onepeace.device import choose_device
from onepeace.errors import UserError, one_line
from onepeace.train.teachers.items import Teacher, autocast


def open_clip_teacher(name: str, modality: str, output: str = "features") -> Teacher:
    """One tower of a model of open_clip: pictures of PIL or strings -> its projected vectors (n, E), not normalised.

    Args:
        name: NAME/PRETRAINED, a model and its weights (a tag that open_clip knows, or a file); or what open_clip takes
            in place of both: local-dir:FOLDER, hf-hub:REPOSITORY.
        modality: text or image.
        output: features; there are no scores.

    Raises:
        UserError: the model cannot be had.
    """
    import open_clip

    model_name, pretrained = name, None
    if not name.startswith(("local-dir:", "hf-hub:")):
        model_name, _, pretrained = name.partition("/")
        if not pretrained:
            raise UserError(f"open_clip:{name}: names no weights; write open_clip:NAME/PRETRAINED or :local-dir:FOLDER")
    device = choose_device()
    try:
        # Without weights it would begin at random ones, with a warning.
        arguments = {"pretrained": pretrained, "device": device, "require_pretrained": True}
        model, _, transform = open_clip.create_model_and_transforms(model_name, **arguments)
        tokenizer = open_clip.get_tokenizer(model_name) if modality == "text" else None
    except Exception as error:  # a wrong name, no network and a damaged file are of many types
        raise UserError(
            f"open_clip:{name}: the teacher cannot be had ({one_line(error):.200}); check its name "
            "(open_clip.list_pretrained()) and the network, or give local-dir:FOLDER"
        ) from error
    model.eval()
    encode_inputs = model.encode_text if modality == "text" else model.encode_image

    def read(items: list[Any]) -> Tensor:
        if tokenizer is not None:
            return tokenizer(items)
        return torch.stack([transform(picture) for picture in items])

    def encode(items: list[Any]) -> Tensor:
        inputs = read(items).to(device)
        with torch.inference_mode(), autocast(device):
            return encode_inputs(inputs).float().cpu()

    return encode
