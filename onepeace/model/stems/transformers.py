"""Stems from transformers: encoders of waveforms (wav2vec 2.0, HuBERT, WavLM, ...) and of texts (BERT, MPNet, ...)."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from onepeace.config.reader import Count
from onepeace.errors import UserError, one_line
from onepeace.special_ids import BOS, PAD

from .pretrained import PretrainedStem
from .wave import Number


class TransformersStem(PretrainedStem):
    """Stem with the last hidden states of an encoder, one token per frame.

    Padding never leaks: these encoders treat padding differently (some normalise over time), so clips of different
    lengths are computed separately.

    Args:
        dim: width of the tokens.
        name: a repository on the Hub or a folder, from which ``load_pretrained`` reads the weights. Code in it is
            never run.
        network: the encoder's configuration, as stored in a model folder; None = that of ``name``.
    """

    def __init__(self, dim: int, name: str, network: dict[str, Any] | None = None):
        import transformers

        config = _configuration(name, network)
        if not hasattr(config, "conv_stride"):
            raise ValueError(f"the stem {name} is a {config.model_type}, not a reader of waveforms such as hubert")
        super().__init__(dim, config.hidden_size)
        self.name = name
        self.network = transformers.AutoModel.from_config(config).eval()
        self.hop = 1
        self.receptive_field = 1
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            self.receptive_field += (kernel - 1) * self.hop
            self.hop *= stride

    def features(self, waveform: Tensor, lengths: Tensor | None, shortest: int) -> Tensor:
        """(B, N) samples, lengths (B,) or None if all are N, and the shortest length -> (B, T, channels)."""
        waveform = waveform.to(self.norm.weight.dtype)
        if lengths is None or shortest == waveform.shape[1]:
            return self.network(waveform).last_hidden_state
        longest = self.token_lengths(waveform.shape[1])
        features = waveform.new_zeros(len(waveform), longest, self.proj.in_features)
        for length in lengths.unique().tolist():
            rows = lengths == length
            states = self.network(waveform[rows, :length]).last_hidden_state
            features[rows, : self.token_lengths(length)] = states
        return features

    def token_lengths(self, samples: Number) -> Number:
        return (samples - self.receptive_field) // self.hop + 1

    def load_pretrained(self) -> None:
        network = _published(self.name, "AutoModel", dtype=torch.float32)
        self.network.load_state_dict(network.state_dict())


def network_options(name: str) -> dict[str, Any]:
    """Non-default fields of an encoder's configuration, and its vocab_size, as plain values.

    Raises:
        UserError: the configuration is not available.
    """
    config = _published(name, "AutoConfig")
    defaults = type(config)().to_dict()
    options: dict[str, Any] = {"model_type": config.model_type}
    if hasattr(config, "vocab_size"):
        options["vocab_size"] = config.vocab_size
    left_out = ("transformers_version", "architectures", "_name_or_path", "dtype")
    for key, value in config.to_dict().items():
        if key not in left_out and value != defaults.get(key):
            options[key] = value
    return options


def _published(name: str, kind: str, **options: Any) -> Any:
    """What a class of transformers, such as "AutoModel", finds on the Hub or in a folder; UserError if it does not."""
    import transformers

    try:
        return getattr(transformers, kind).from_pretrained(name, **options)
    except Exception as error:  # a wrong name, no network and a damaged file raise many types
        raise UserError(
            f"the stem transformers {name} cannot be loaded ({one_line(error):.200}); check its name and the network, "
            "or give a folder with its files"
        ) from error


def _configuration(name: str, network: dict[str, Any] | None) -> Any:
    """The configuration that is stored in a model folder, or that of the published encoder."""
    import transformers

    options = dict(network or network_options(name))
    return transformers.AutoConfig.for_model(options.pop("model_type"), **options)


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

    def __init__(self, dim: int, name: str, layers: Count | None = None, network: dict[str, Any] | None = None):
        import transformers

        config = _configuration(name, network)
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
        tokenizer = _published(self.name, "AutoTokenizer")
        network = _published(self.name, "AutoModel", dtype=torch.float32)
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
