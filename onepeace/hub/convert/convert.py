"""Conversion of original checkpoints, or of model folders, to new model folders: `onepeace convert`."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import torch

from onepeace.device import named_dtype
from onepeace.errors import UsageError
from onepeace.hub.architectures import keep_modalities
from onepeace.hub.contents import compare, expected
from onepeace.hub.convert.write import converted_tensors, tokenizer_of, write_converted
from onepeace.hub.folder import MODEL_FOLDER, check_free
from onepeace.hub.weights import describe, leave_out_base


def convert(
    checkpoint: str | Path,
    out: str | Path,
    *,
    modalities: Collection[str] | None = None,
    dtype: str | torch.dtype | None = None,
    bpe: str | Path | None = None,
    base: str | None = None,
    replace_existing: bool = False,
    progress: bool = False,
) -> Path:
    """Convert an original checkpoint (.pt, .pth, .pkl, .bin) or a model folder into the model folder `out`.

    Tensors are read, converted and written file by file, so weights of any size need the memory of one file (2 GiB).

    Args:
        modalities: modalities to keep; None = all.
        dtype: "float32", "bfloat16" or "float16"; None = that of the file.
        bpe: folder with the vocabulary (encoder.json, vocab.bpe, dict.txt; or vocab.json, merges.txt). None = that of
            facebook/bart-base on the Hugging Face Hub, if the model reads text. Model folders have their own.
        base: name of a model; tensors equal to its own are left out, and read from it when `out` is loaded.
        replace_existing: replace `out` if it is already a model folder; files of others in it are kept.

    Raises:
        UserError: unreadable or hostile file, missing, unexpected or misshapen tensors, no vocabulary.
    """
    out = Path(out)
    target = None if dtype is None else named_dtype(dtype)
    check_free(out, replace=replace_existing)
    source = describe(checkpoint)
    where, config = str(source.path), source.config
    if bpe is not None and source.layout == MODEL_FOLDER:
        raise UsageError("a model folder has its own vocabulary; leave out --bpe", where=where)
    compare(where, source.shapes, expected(config))
    if modalities is not None:
        config = keep_modalities(config, modalities, where)
    tokenizer = tokenizer_of(source, bpe, config)
    tensors = converted_tensors(source, config, target)
    config = replace(config, base=None)
    if base is not None:
        tensors, base_entry = leave_out_base(tensors, base)
        config = replace(config, base=base_entry)
    write_converted(
        source, out, config, tensors, tokenizer=tokenizer, replace_existing=replace_existing, progress=progress
    )
    return out
