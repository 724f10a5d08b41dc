"""The architecture ONE-PEACE: building a model and changing its configuration; only building imports torch."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from onepeace.config import ModelConfig, Options
from onepeace.errors import UserError
from onepeace.extensions import HINT

if TYPE_CHECKING:
    from torch import Tensor

    from onepeace.model import OnePeace

CREDIT = (
    "Weights by the authors of ONE-PEACE (Wang et al., arXiv 2305.11172; https://github.com/OFA-Sys/ONE-PEACE, "
    "Apache-2.0)."
)


def module(config: ModelConfig) -> "OnePeace":
    """Build the model; UserError for a modality that has no adapter."""
    from onepeace.model import ADAPTERS, OnePeace

    for key in config.adapters:
        if key not in ADAPTERS:
            raise UserError(f"no modality {key!r}; known: {', '.join(ADAPTERS)}; {HINT}")
    return OnePeace(config)


def keep_modalities(config: ModelConfig, modalities: Collection[str]) -> ModelConfig:
    """Keep these modalities, and task heads that read items of one of them; other heads need all modalities."""
    adapters = {key: options for key, options in config.adapters.items() if key in modalities}
    decoder = config.decoder
    if decoder is not None:
        decoder = replace(decoder, options={key: value for key, value in decoder.options.items() if key in adapters})
    heads = config.heads
    if len(adapters) < len(config.adapters):
        heads = _kept_heads(heads, adapters)
    final_norm = config.final_norm
    if not isinstance(final_norm, bool):
        final_norm = tuple(key for key in final_norm if key in adapters)
    return replace(
        config,
        adapters=adapters,
        final_norm=final_norm,
        projections=tuple(key for key in config.projections if key in adapters),
        decoder=decoder,
        heads=heads,
    )


def _kept_heads(heads: Mapping[str, Options], modalities: Collection[str]) -> dict[str, Options]:
    kept = {}
    for name, head in heads.items():
        if isinstance(head["on"], list):
            keys = [key for key in head["on"] if key in modalities]
            if keys:
                kept[name] = {**head, "on": keys}
        elif head["on"] in modalities and classifies_items(head):
            kept[name] = head
    return kept


def classifies_items(head: Options) -> bool:
    """Whether a head classifies single items: it reads neither several nor a question."""
    has_classes = head.get("task", "label") in ("label", "labels")
    return head["kind"] == "classifier" and has_classes and head.get("inputs", 1) == 1


def resize(table: "Tensor", shape: tuple[int, ...]) -> "Tensor":
    """Resample a table of relative-position biases to ``shape``; no other tensor depends on the size of pictures.

    A table that is not of a grid, such as that of texts, stays as it is.
    """
    from onepeace.layers.position import grid_table_rows, resize_bias_table

    rows = [grid_table_rows(side) for side in range(1, shape[0])]
    if table.shape[0] not in rows or shape[0] not in rows:
        return table
    return resize_bias_table(table, rows.index(shape[0]) + 1)
