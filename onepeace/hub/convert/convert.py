"""Conversion of original checkpoints, or of model folders, to new model folders: `onepeace convert`."""

from collections.abc import Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onepeace import __version__
from onepeace.config import Config
from onepeace.device import named_dtype
from onepeace.errors import UsageError, UserError
from onepeace.hub.architectures import architecture, keep_modalities
from onepeace.hub.download import from_hub
from onepeace.hub.folder import CARD, TOKENIZER, check_free, new_folder
from onepeace.hub.tensors import LazyTensor
from onepeace.hub.weights import (
    MODEL_FOLDER,
    Description,
    cast,
    compare,
    describe,
    expected,
    leave_out_base,
    write_folder,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer


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
        raise UsageError(f"{where}: a model folder has its own vocabulary; leave out --bpe")
    compare(where, source.shapes, expected(config))
    if modalities is not None:
        config = keep_modalities(config, modalities, where)
    tokenizer = _tokenizer(source, bpe, config)
    entries = {}
    for name, shape in expected(config).items():
        tensor = source.tensors[name]
        final = tensor.dtype if target is None else target
        entries[name] = LazyTensor(shape, final, partial(_read, tensor, final, f"{where}: {name}"))
    config = replace(config, base=None)
    if base is not None:
        entries, found = leave_out_base(entries, base)
        config = replace(config, base=found)
    with new_folder(out, replace=replace_existing) as temporary:
        if tokenizer is not None:
            (temporary / TOKENIZER).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
        write_folder(temporary, entries, config, _card(source, config), progress=progress)
    return out


def vocabulary(folder: str | Path | None, size: int | None = None) -> "Tokenizer":
    """The released vocabulary from `folder`, or from the Hub; UserError if it does not have `size` pieces."""
    from onepeace.processors.tokenizer import from_released

    if folder is None:
        remedy = "run: onepeace convert CHECKPOINT -o OUT --bpe DIR, with encoder.json, vocab.bpe and dict.txt in DIR"
        folder = from_hub("facebook/bart-base", ["vocab.json", "merges.txt"], "the vocabulary of its texts", remedy)
    tokenizer = from_released(folder)
    if size not in (None, pieces := tokenizer.get_vocab_size()):
        raise UserError(f"{folder}: has {pieces} pieces, the model's table {size}; another vocabulary")
    return tokenizer


def _tokenizer(source: Description, bpe: str | Path | None, config: Config) -> "Tokenizer | None":
    from onepeace.processors.tokenizer import read_tokenizer

    if "text" not in config.model.adapters:
        return None
    if source.layout == MODEL_FOLDER:
        return read_tokenizer(source.path / TOKENIZER)
    return vocabulary(bpe, config.model.adapters["text"]["vocab_size"])


def _read(tensor: LazyTensor, dtype: torch.dtype, where: str) -> Tensor:
    return cast(tensor.read(), dtype, where)


def _card(source: Description, config: Config) -> str:
    """Text of MODEL_CARD.md; a model folder keeps its own."""
    if source.layout == MODEL_FOLDER:
        card = source.path / CARD
        return card.read_text(encoding="utf-8") if card.is_file() else f"# {source.path.name}\n"
    conversion = architecture(config.architecture).conversion
    lines = [
        f"# {source.path.stem}\n",
        f"Converted by onepeace {__version__} from `{source.path.name}` "
        f"({source.file_bytes:,} bytes; {source.layout}).\n",
        f"- Modalities: {', '.join(config.model.adapters)}\n",
        conversion.credit if conversion else "",
    ]
    return "\n".join(lines).rstrip() + "\n"
