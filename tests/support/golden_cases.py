"""The original's numbers (tests/golden/model), our model with the original's weights, and the comparison of both."""

import json
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from onepeace.config import MaskedDecoderConfig, ModelConfig
from onepeace.hub.convert.keys import to_ours
from onepeace.layers.position import resize_bias_table
from onepeace.model import OnePeace

FOLDER = Path(__file__).parents[1] / "golden" / "model"

# Tolerances: the original in float64 differs from itself in float32 by up to 1.4e-6 of the largest token feature (6),
# 3e-7 in losses and 1e-5 of a gradient's largest entry.
UNIT, TOKENS, LOSS, GRADIENT = 1e-5, 2e-5, 1e-5, 5e-5

CONVS = [[24, 10, 5], [24, 3, 2], [24, 3, 2], [24, 2, 2]]
HOP, FIELD = 40, 60  # of these convolutions, in samples
ADAPTERS = {
    "text": {"vocab_size": 160, "num_positions": 514, "num_buckets": 8},
    "image": {"patch_size": 16, "grid": 4, "bias_grid": 4},
    "audio": {"stem": "wave", "convs": CONVS, "num_buckets": 12, "pos_depth": 3, "pos_kernel": 5, "pos_groups": 4},
    "video": {"patch_size": 16, "grid": 4, "bias_grid": 4, "frames": 4},
}
DECODER = {"text": {"num_positions": 514}, "image": {"grid": 4}, "audio": {"num_positions": 1026}}


class Case(NamedTuple):
    """Tensors of one folder by the original's names; empty where the folder has none."""

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    grads: dict[str, Tensor]
    weights: dict[str, Tensor]
    info: dict

    def batch(self, text: str = "src_tokens", image: str = "src_images", audio: str = "src_audios") -> dict:
        """The model's input of what the case has."""
        batch = {}
        if text in self.inputs:
            batch["text"] = text_batch(self.inputs[text])
        if image in self.inputs:
            batch["image"] = {"pixels": self.inputs[image].float()}
        if audio in self.inputs:
            frames = (~self.inputs["audio_padding_masks"]).sum(1) - 1
            batch["audio"] = {"waveform": self.inputs[audio], "lengths": (frames - 1) * HOP + FIELD}
        return batch


def head_passes(task: str) -> list[dict]:
    """What a model with a head takes: a batch, of two pictures another one; four questions of each sound."""
    found = case("grounding" if task.startswith("grounding") else task)
    batch = found.batch()
    if task == "avqa":
        batch["audio"] = {name: tensor.repeat_interleave(4, dim=0) for name, tensor in batch["audio"].items()}
    if "src_images_2" not in found.inputs:
        return [batch]
    second = {"pixels": found.inputs["src_images_2"].float(), "type_ids": torch.ones(3, dtype=torch.long)}
    return [batch, {**batch, "image": second}]


@cache
@torch.inference_mode(False)  # the first test that asks may be in that mode, and others compute gradients
def case(name: str, folder: Path = FOLDER) -> Case:
    """Read a case; ``folder`` may be one with more gradients."""
    kinds = ("inputs", "outputs", "grads", "weights_extra")
    files = [folder / name / f"{kind}.safetensors" for kind in kinds]
    info = folder / name / "info.json"
    tensors = [load_file(file) if file.is_file() else {} for file in files]
    return Case(*tensors, json.loads(info.read_text()) if info.is_file() else {})


@cache
@torch.inference_mode(False)
def weights() -> dict[str, Tensor]:
    """The weights all cases share, by the original's names."""
    return load_file(FOLDER / "weights_full.safetensors")


def golden_model(
    modalities: str,
    *,
    decoder: bool = False,
    projections: bool = False,
    extra: dict | None = None,
    options: dict | None = None,
    **config,
) -> OnePeace:
    """Our model of some modalities ("text image") with the original's weights.

    ``extra``: more weights under the original's names. ``options``: more adapter options by modality. ``config``: more
    fields of ModelConfig. Further bias tables are copies of the first, and grow to a larger ``bias_grid``.
    """
    keys = modalities.split()
    model = OnePeace(
        ModelConfig(
            dim=32, embed_dim=32, depth=3, num_heads=4, ffn_dim=64,
            adapters={key: {**ADAPTERS[key], **(options or {}).get(key, {})} for key in keys},
            projections=tuple(keys) if projections else (),
            decoder=MaskedDecoderConfig(24, 2, 3, 48, {key: DECODER[key] for key in keys}) if decoder else None,
            **config,
        )
    )  # fmt: skip
    parameters = dict(model.named_parameters())
    filled = set()
    with torch.no_grad():
        for name, tensor in {**weights(), **(extra or {})}.items():
            ours, row = place(name)
            if ours not in parameters:
                continue
            target = parameters[ours] if row is None else parameters[ours][row]
            if ".bias_tables." in ours and target.shape != tensor.shape:
                tensor = resize_bias_table(tensor, model.adapters["image"].bias_grid)
            target.copy_(tensor.reshape(target.shape))
            filled.add(ours)
        for adapter in model.adapters.values():
            for table in adapter.bias_tables[1:]:
                table.copy_(adapter.bias_tables[0])
    left = [name for name in parameters if name not in filled and not re.search(r"\.bias_tables\.[1-9]", name)]
    assert not left, f"the golden weights lack {', '.join(left)}"
    return model


def place(name: str) -> tuple[str | None, int | None]:
    """Our name of an original tensor, and the row it is of ours if not the whole."""
    ours = to_ours(name)
    if ours is None or not ours.endswith("]"):
        return ours, None
    base, _, row = ours[:-1].partition("[")
    return base, int(row)


def assert_near(actual: Tensor, expected: Tensor, atol: float, where: Tensor | None = None) -> None:
    """Equal shapes, finite numbers, and no difference above ``atol`` (at the rows ``where`` is True)."""
    assert actual.shape == expected.shape
    if where is not None:
        actual, expected = actual[where], expected[where]
    assert actual.numel() > 0
    assert bool(torch.isfinite(actual).all())
    worst = (actual - expected).abs().max().item()
    assert worst <= atol, f"{worst:.2e} is above {atol:.0e}"


def assert_gradients_match(model: torch.nn.Module, grads: dict[str, Tensor], total_norm: float) -> None:
    """Each gradient within GRADIENT of its largest entry (or of 1e-4 of the whole gradient's norm)."""
    parameters = dict(model.named_parameters())
    compared = 0
    for name, expected in grads.items():
        ours, row = place(name)
        if ours is None:
            continue  # a parameter that nothing reads
        grad = parameters[ours].grad
        if grad is None:
            assert not expected.any(), f"{ours} has no gradient"
            continue
        if row is not None:
            grad = grad[row]
        if grad.ndim == 2 and len(grad) > len(expected) and ".pos_embed." in ours:
            assert not grad[len(expected) :].any(), f"{ours} has a gradient at positions that do not occur"
            grad = grad[: len(expected)]
        grad = grad.reshape(expected.shape)
        scale = max(expected.abs().max().item(), 1e-4 * total_norm)
        assert bool(torch.isfinite(grad).all()), ours
        worst = (grad - expected).abs().max().item() / scale
        assert worst <= GRADIENT, f"{ours}: {worst:.2e}"
        compared += 1
    assert compared


def text_batch(ids: Tensor) -> dict[str, Tensor]:
    """The model's input of ids padded with 1."""
    return {"ids": ids, "lengths": (ids != 1).sum(1)}


def rows(lengths: Tensor, count: int) -> Tensor:
    """(B, count) bool: True at each item's first ``lengths`` tokens."""
    return torch.arange(count) < lengths[:, None]


def text_rows(ids: Tensor) -> Tensor:
    """(B, L + 1) bool: True at CLS and real tokens."""
    return rows(1 + (ids != 1).sum(1), ids.shape[1] + 1)


def assert_embeds_as_golden(model, modalities, atol=UNIT):
    inputs, outputs = case("embed").inputs, case("embed").outputs
    batch = {
        "text": text_batch(inputs["text"]),
        "image": {"pixels": inputs["image"].float()},
        "audio": {"waveform": inputs["audio_equal"], "lengths": torch.full((2,), 1600)},
    }
    vectors = model({key: batch[key] for key in modalities})
    assert set(vectors) == set(modalities)
    for key in modalities:
        assert_near(vectors[key], outputs[f"{key}_embed"], atol)
