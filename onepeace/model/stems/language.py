"""A text stem from transformers: the first layers of a text encoder (BERT, RoBERTa, MPNet, ...)."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from onepeace.special_ids import BOS, PAD

from .pretrained import PretrainedStem
from .transformers import network_options, unavailable


class LanguageStem(PretrainedStem):
    """Stem of the first layers of a text encoder: its hidden states, one token per id.

    Ids are those of onepeace.processors.tokenizer.from_transformers: the encoder's start, padding, end and unknown
    tokens come first, and its embedding is reordered accordingly. The start token is prepended here, and its state is
    dropped.

    Args:
        dim: width of the tokens.
        name: a repository on the Hub or a folder, from which ``load_pretrained`` reads the weights. Code in it is
            never run.
        layers: number of encoder layers to use; None = all.
        network: the encoder's configuration, as stored in a model folder; None = that of ``name``.
    """

    def __init__(self, dim: int, name: str, layers: int | None = None, network: dict[str, Any] | None = None):
        import transformers

        options = dict(network or network_options(name))
        config = transformers.AutoConfig.for_model(options.pop("model_type"), **options)
        depth = getattr(config, "num_hidden_layers", 0)
        if config.is_encoder_decoder or hasattr(config, "conv_stride") or not getattr(config, "vocab_size", 0):
            raise ValueError(f"the stem {name} is a {config.model_type}, not a text encoder such as bert or mpnet")
        if layers is not None and not 1 <= layers <= depth:
            raise ValueError(f"the stem {name} has {depth} layers; layers: {layers} should be 1 to {depth}")
        config.num_hidden_layers = layers or depth
        config.pad_token_id = PAD
        super().__init__(dim, config.hidden_size)
        self.name = name
        self.network = transformers.AutoModel.from_config(config).eval()
        self.network.pooler = None  # unused: it pools the states to one vector
        _fill_buffers(self.network)
        self.longest = getattr(config, "max_position_embeddings", 512) - 2 - PAD  # RoBERTa counts from PAD + 1
        """Maximum length of a text in ids, end included."""

    def forward(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """(B, L) ids and their padding mask (B, L) or None -> (B, L, D).

        Raises:
            ValueError: a text is longer than the encoder supports.
        """
        if ids.shape[1] > self.longest:
            raise ValueError(
                f"{ids.shape[1]} text tokens are more than the {self.longest} that the stem {self.name} reads; "
                "lower processors.text.max_tokens"
            )
        ids = torch.cat([ids.new_full((ids.shape[0], 1), BOS), ids], dim=1)
        attention_mask = None
        if mask is not None:
            attention_mask = torch.cat([~mask[:, :1], ~mask], dim=1).long()
        states = self.network(input_ids=ids, attention_mask=attention_mask).last_hidden_state
        return self.project(states[:, 1:])

    def load_pretrained(self) -> None:
        import transformers

        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.name)
            network = transformers.AutoModel.from_pretrained(self.name, dtype=torch.float32)
        except Exception as error:  # a wrong name, no network and a damaged file raise many types
            raise unavailable(self.name, error) from error
        specials = [tokenizer.cls_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id, tokenizer.unk_token_id]
        embedding = network.get_input_embeddings()
        order = [*specials, *(row for row in range(len(embedding.weight)) if row not in specials)]
        embedding.weight = nn.Parameter(embedding.weight[order].clone())
        weights = network.state_dict()
        self.network.load_state_dict({name: weights[name] for name in self.network.state_dict()})


def _fill_buffers(network: Any) -> None:
    """Fill buffers that are not stored in files (position ids) and have no values after construction on meta."""
    if not any(buffer.is_meta for buffer in network.buffers()):
        return
    config = deepcopy(network.config)
    config.vocab_size = PAD + 1  # the embedding has no buffers and is the slowest part to create
    with torch.device("cpu"):
        twin = type(network)(config)
    for name, module in network.named_modules():
        for buffer_name, buffer in twin.get_submodule(name).named_buffers(recurse=False):
            module.register_buffer(buffer_name, buffer, persistent=False)
