"""Audio stem from any transformers encoder that reads waveforms (wav2vec 2.0, HuBERT, WavLM, ...)."""

from typing import Any

import torch
from torch import Tensor

from onepeace.errors import UserError, one_line

from .pretrained import PretrainedStem
from .wave import Count


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

        options = dict(network or network_options(name))
        config = transformers.AutoConfig.for_model(options.pop("model_type"), **options)
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

    def token_lengths(self, samples: Count) -> Count:
        return (samples - self.receptive_field) // self.hop + 1

    def load_pretrained(self) -> None:
        import transformers

        try:
            network = transformers.AutoModel.from_pretrained(self.name, dtype=torch.float32)
        except Exception as error:  # a wrong name, no network and a damaged file raise many types
            raise unavailable(self.name, error) from error
        self.network.load_state_dict(network.state_dict())


def network_options(name: str) -> dict[str, Any]:
    """Non-default fields of an encoder's configuration, and its vocab_size, as plain values.

    Raises:
        UserError: the configuration is not available.
    """
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(name)
    except Exception as error:
        raise unavailable(name, error) from error
    defaults = type(config)().to_dict()
    options: dict[str, Any] = {"model_type": config.model_type}
    if hasattr(config, "vocab_size"):
        options["vocab_size"] = config.vocab_size
    left_out = ("transformers_version", "architectures", "_name_or_path", "dtype")
    for key, value in config.to_dict().items():
        if key not in left_out and value != defaults.get(key):
            options[key] = value
    return options


def unavailable(name: str, error: Exception) -> UserError:
    """Error for an encoder that is neither on the Hub nor in a folder."""
    return UserError(
        f"the stem transformers {name} cannot be loaded ({one_line(error):.200}); check its name and the network, or "
        "give a folder with its files"
    )
