"""A described checkpoint becomes a model folder: vocabulary, dtype, model card."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from onepeace import __version__
from onepeace.config import Config
from onepeace.errors import UserError
from onepeace.hub.architectures import architecture
from onepeace.hub.contents import ModelDescription, cast, expected, write_folder
from onepeace.hub.download import from_hub
from onepeace.hub.folder import CARD, MODEL_FOLDER, TOKENIZER, new_folder
from onepeace.hub.tensors import LazyTensor

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def converted_tensors(source: ModelDescription, config: Config, dtype: torch.dtype | None) -> dict[str, LazyTensor]:
    """The tensors of a configuration, unread, in a dtype; None = that of the file."""
    tensors = {}
    for name, shape in expected(config).items():
        tensor = source.tensors[name]
        final_dtype = tensor.dtype if dtype is None else dtype
        read = partial(_read, tensor, final_dtype, f"{source.path}: {name}")
        tensors[name] = LazyTensor(shape, final_dtype, read)
    return tensors


def write_converted(
    source: ModelDescription,
    out: Path,
    config: Config,
    tensors: Mapping[str, LazyTensor],
    *,
    tokenizer: "Tokenizer | None",
    replace_existing: bool = False,
    progress: bool = False,
) -> None:
    """Write the model folder `out` with these tensors of `source`."""
    with new_folder(out, replace=replace_existing) as temporary:
        if tokenizer is not None:
            (temporary / TOKENIZER).write_text(tokenizer.to_str(pretty=True), encoding="utf-8")
        write_folder(temporary, tensors, config, _card(source, config), progress=progress)


def vocabulary(folder: str | Path | None, size: int | None = None) -> "Tokenizer":
    """The released vocabulary from `folder`, or from the Hub; UserError if it does not have `size` pieces."""
    from onepeace.processors.tokenizer import from_released

    if folder is None:
        remedy = "run: onepeace convert CHECKPOINT -o OUT --bpe DIR, with encoder.json, vocab.bpe and dict.txt in DIR"
        folder = from_hub("facebook/bart-base", ["vocab.json", "merges.txt"], "the vocabulary of its texts", remedy)
    tokenizer = from_released(folder)
    if size not in (None, pieces := tokenizer.get_vocab_size()):
        raise UserError(f"has {pieces} pieces, the model's table {size}; another vocabulary", where=folder)
    return tokenizer


def tokenizer_of(source: ModelDescription, bpe: str | Path | None, config: Config) -> "Tokenizer | None":
    from onepeace.processors.tokenizer import read_tokenizer

    if "text" not in config.model.adapters:
        return None
    if source.layout == MODEL_FOLDER:
        return read_tokenizer(source.path / TOKENIZER)
    return vocabulary(bpe, config.model.adapters["text"]["vocab_size"])


def _read(tensor: LazyTensor, dtype: torch.dtype, where: str) -> Tensor:
    return cast(tensor.read(), dtype, where)


def _card(source: ModelDescription, config: Config) -> str:
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
