"""Token features: the outputs of the model for each token of an item, and what each token covers."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from onepeace.embed.base import LoadedModel
from onepeace.errors import UserError


class Tokens(NamedTuple):
    """Token features of one modality from a joint pass of all given modalities."""

    cls: Tensor
    """(D,) float32: the CLS token."""
    features: Tensor
    """(L, D) float32, without the CLS token."""
    positions: Tensor
    """(L, 2): the extent that each token covers, in `unit`."""
    unit: str
    """"patch": row and column; "second": start and end; "character": start and end in the text after
    `onepeace.processors.TextProcessor.prepare`; "token" (custom modalities): its index and the next."""


@torch.no_grad()
def token_features(embedder: LoadedModel, item: Mapping[str, object]) -> dict[str, Tokens]:
    """Token features of one item; see `Embedder.features`."""
    if not isinstance(item, Mapping) or not item:
        raise UserError(f'features takes a dictionary by modality: {{"{embedder.modalities[0]}": ...}}')
    inputs = {}
    for modality, value in item.items():
        sample = embedder.processor(modality).decode(value)
        inputs[modality] = embedder.inputs(modality, [sample])
    outputs = embedder.encoder.features(inputs)
    tokens_by_modality = {}
    for modality, value in item.items():
        cls_and_tokens = outputs[modality][0].float().cpu()
        positions, unit = token_positions(embedder, modality, value, inputs[modality])
        tokens_by_modality[modality] = Tokens(cls_and_tokens[0], cls_and_tokens[1:], positions, unit)
    return tokens_by_modality


def token_positions(
    embedder: LoadedModel, modality: str, value: object, inputs: dict[str, Tensor]
) -> tuple[Tensor, str]:
    """The extent (L, 2) of each token, and its unit, by the processor or else by the model's adapter."""
    positions = embedder.processors[modality].token_positions(value)
    if positions is None:
        return embedder.encoder.adapters[modality].token_positions(inputs)
    return positions
