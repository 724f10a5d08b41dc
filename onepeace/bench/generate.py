"""`onepeace bench generate`: tokens a second of the decoder with its cache, without it, and of transformers' BART.

All three write answers of the same length about the same number of encoder tokens, greedily or by beam search; the
encoders are left out. BART has the same width, depth, heads and vocabulary, from its configuration alone, with random
weights; it lacks OFA's positional biases, head scales and two of its LayerNorms in each block.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onepeace.bench.comparison import check_equal, ratios, short, spread, take_turns
from onepeace.config import build
from onepeace.config.ofa import OFA_SIZES, OFAConfig
from onepeace.errors import UserError
from onepeace.generative.model import OFA
from onepeace.generative.search import SearchOptions, search
from onepeace.layers.text_decoder import Encoded, TextDecoder
from onepeace.processors.tokenizer import BOS, EOS, PAD

log = logging.getLogger(__name__)

SOURCE_TOKENS = 908
"""Of the encoder: a picture of 480 pixels in patches of 16, and a prompt of 8 tokens."""
CLOSE = 1e-3
"""Relative, between scores with the cache and without."""


@dataclass
class Rewritten:
    """The state of a decoder without a cache: all that was fed, and the source of each hypothesis."""

    tokens: Tensor
    sources: Tensor

    def select(self, rows: Tensor) -> "Rewritten":
        return Rewritten(self.tokens[rows], self.sources[rows])


def bench_generate(
    sizes: Sequence[str],
    beams: Sequence[int],
    batch: int,
    length: int,
    dtypes: Sequence[torch.dtype],
    device: torch.device,
    seconds: float,
) -> Iterator[dict[str, Any]]:
    """A row for every size of OFA_SIZES, dtype and beam: `batch` answers of `length` tokens, measured so long."""
    if unknown := [size for size in sizes if size not in OFA_SIZES]:
        raise UserError(f"{unknown[0]!r} is no size of OFA; known: {', '.join(OFA_SIZES)}")
    for size in sizes:
        config = build(OFAConfig, OFA_SIZES[size], size)
        decoder, baseline = OFA(config).decoder.eval(), _bart(config)
        for dtype in dtypes:
            decoder.to(device, dtype)
            baseline.to(device, dtype)
            source = torch.randn(batch, SOURCE_TOKENS, config.dim, device=device, dtype=dtype)
            for beam in beams:
                log.info("%s, %s, beam %d ...", size, dtype, beam)
                ways = _ways(decoder, baseline, source, beam, length)
                # In half precision rounding decides between hypotheses that are nearly as good.
                if dtype == torch.float32:
                    check_equal({"scores": ways["ours"]()}, {"scores": ways["uncached"]()}, CLOSE, "the")
                times = take_turns(ways, seconds, device)
                yield {
                    "size": size,
                    "dtype": str(dtype).removeprefix("torch."),
                    "beam": beam,
                    "batch": batch,
                    "length": length,
                    "source_tokens": SOURCE_TOKENS,
                    "rounds": len(times["ours"]),
                    "tokens_per_second": {
                        way: spread([batch * length / one for one in values]) for way, values in times.items()
                    },
                    "ours_over_uncached": ratios(times, "uncached", "ours"),
                    "ours_over_transformers": ratios(times, "transformers", "ours"),
                }


def _ways(decoder: TextDecoder, baseline: Any, source: Tensor, beam: int, length: int) -> dict[str, Callable[[], Any]]:
    """What takes turns, by name; the first two give the scores of the best answers."""
    from transformers.modeling_outputs import BaseModelOutput

    options = SearchOptions(beam=beam, max_len=length, min_len=length)
    encoded, count = Encoded(source, None, source), len(source)

    def rewrite(tokens: Tensor, state: Rewritten) -> Tensor:
        state.tokens = torch.cat([state.tokens, tokens[:, None]], dim=1)
        return decoder(state.tokens, encoded.rows(state.sources))[:, -1]

    def ours() -> Tensor:
        with torch.inference_mode():
            found = search(decoder.step, decoder.start(encoded, length + 1), count, options, device=source.device)
        return torch.tensor([row[0].score for row in found])

    def uncached() -> Tensor:
        numbers = torch.arange(count, device=source.device)
        with torch.inference_mode():
            found = search(
                rewrite, Rewritten(numbers.new_empty(count, 0), numbers), count, options, device=source.device
            )
        return torch.tensor([row[0].score for row in found])

    def transformers() -> Tensor:
        return baseline.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=source),
            attention_mask=torch.ones(source.shape[:2], dtype=torch.long, device=source.device),
            num_beams=beam,
            do_sample=False,
            min_new_tokens=length,
            max_new_tokens=length + 1,
        )

    return {"ours": ours, "uncached": uncached, "transformers": transformers}


def _bart(config: OFAConfig) -> Any:
    """transformers' BART of the same shape with random weights."""
    from transformers import BartConfig, BartForConditionalGeneration

    heads, depth = config.num_heads, config.decoder_depth
    bart = BartConfig(
        vocab_size=config.vocab_size, d_model=config.dim, max_position_embeddings=config.num_positions,
        encoder_layers=1, encoder_attention_heads=heads, encoder_ffn_dim=config.ffn_dim,
        decoder_layers=depth, decoder_attention_heads=heads, decoder_ffn_dim=config.ffn_dim,
        bos_token_id=BOS, pad_token_id=PAD, eos_token_id=EOS, decoder_start_token_id=BOS, forced_eos_token_id=EOS,
    )  # fmt: skip
    return BartForConditionalGeneration(bart).eval()


def columns(row: Mapping[str, Any]) -> dict[str, str]:
    """A row for people: medians, quartiles in brackets."""
    speed = row["tokens_per_second"]

    def ratio(name: str) -> str:
        value = row[f"ours_over_{name}"]
        return f"{value['median']:.2f} ({value['low']:.2f}-{value['high']:.2f})"

    return {
        "model": f"OFA-{row['size']}, random weights",
        "dtype": row["dtype"],
        "answers": f"{row['batch']} of {row['length']} tokens, beam {row['beam']}",
        "tokens/s": f"{short(speed['ours']['median'])} ({short(speed['ours']['low'])}-{short(speed['ours']['high'])})",
        "x without cache": ratio("uncached"),
        "x transformers' BART": ratio("transformers"),
    }
