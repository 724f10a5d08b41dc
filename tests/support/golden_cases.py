"""The original's numbers (tests/golden/model), our model with the original's weights, and the comparison of both."""

import json
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
UNIT = 1e-5
TOKENS = 2e-5
LOSS = 1e-5
GRADIENT = 5e-5

CONVS = [[24, 10, 5], [24, 3, 2], [24, 3, 2], [24, 2, 2]]
HOP = 40
FIELD = 60
"""Samples from one token to the next, and those that one token sees, of these convolutions."""
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


def head_batch(task: str) -> dict:
    """The batch that a model with a head takes: two rows an item for pairs of pictures; four questions a sound."""
    task_case = case("grounding" if task.startswith("grounding") else task)
    batch = task_case.batch()
    if task == "avqa":
        for name, tensor in batch["audio"].items():
            batch["audio"][name] = tensor.repeat_interleave(4, dim=0)
    if "src_images_2" in task_case.inputs:
        pairs = [task_case.inputs[name].float() for name in ("src_images", "src_images_2")]
        batch["image"] = {"pixels": torch.stack(pairs, dim=1).flatten(0, 1)}
        batch["text"] = {name: tensor.repeat_interleave(2, dim=0) for name, tensor in batch["text"].items()}
    return batch


@cache
@torch.inference_mode(False)  # the first test that asks may be in that mode, and others compute gradients
def case(name: str, folder: Path = FOLDER) -> Case:
    """Read a case; ``folder`` may be one with more gradients."""
    tensors = {}
    for part in ("inputs", "outputs", "grads", "weights_extra"):
        file = folder / name / f"{part}.safetensors"
        tensors[part.removesuffix("_extra")] = load_file(file) if file.is_file() else {}
    file = folder / name / "info.json"
    info = json.loads(file.read_text()) if file.is_file() else {}
    return Case(**tensors, info=info)


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
    adapters = {key: dict(ADAPTERS[key]) for key in keys}
    for key, changes in (options or {}).items():
        adapters[key].update(changes)
    if decoder:
        config["decoder"] = MaskedDecoderConfig(24, 2, 3, 48, {key: DECODER[key] for key in keys})
    if projections:
        config["projections"] = tuple(keys)
    sizes = {"dim": 32, "embed_dim": 32, "depth": 3, "num_heads": 4, "ffn_dim": 64}
    model = OnePeace(ModelConfig(**sizes, adapters=adapters, **config))
    _fill(model, {**weights(), **(extra or {})})
    return model


@torch.no_grad()
def _fill(model: OnePeace, originals: dict[str, Tensor]) -> None:
    """Copy the original's weights; every parameter must have one."""
    parameters = dict(model.named_parameters())
    missing = set(parameters)
    for name, tensor in originals.items():
        our_name, row = place(name)
        if our_name not in parameters:
            continue
        missing.discard(our_name)
        target = parameters[our_name]
        if row is not None:
            target = target[row]
        if ".bias_tables." in our_name and target.shape != tensor.shape:
            tensor = resize_bias_table(tensor, model.adapters["image"].bias_grid)
        target.copy_(tensor.reshape(target.shape))
    for key, adapter in model.adapters.items():
        first_table, *further_tables = adapter.bias_tables
        for number, table in enumerate(further_tables, start=1):
            table.copy_(first_table)
            missing.discard(f"adapters.{key}.bias_tables.{number}")
    assert not missing, "the golden weights lack them"


def place(name: str) -> tuple[str | None, int | None]:
    """Our name of an original tensor, and the row it is of ours if not the whole."""
    our_name = to_ours(name)
    if our_name is None or not our_name.endswith("]"):
        return our_name, None
    parameter, _, row = our_name[:-1].partition("[")
    return parameter, int(row)


def assert_near(
    actual: Tensor, expected: Tensor, atol: float, where: Tensor | None = None, what: str = "tensors"
) -> None:
    """Equal shapes, finite numbers, and no difference above ``atol`` (at the rows ``where`` is True)."""
    assert actual.shape == expected.shape, what
    if where is not None:
        actual = actual[where]
        expected = expected[where]
    assert actual.numel() > 0, what
    assert bool(torch.isfinite(actual).all()), what
    difference = (actual - expected).abs().max().item()
    assert difference <= atol, f"{what} differ by {difference:.3g}, more than {atol}"


def assert_gradients_match(model: torch.nn.Module, grads: dict[str, Tensor], total_norm: float) -> None:
    """Each gradient within GRADIENT of its largest entry (or of 1e-4 of the whole gradient's norm)."""
    num_compared = 0
    for name, expected in grads.items():
        our_name, row = place(name)
        if our_name is None:
            continue  # a parameter that nothing reads
        gradient = model.get_parameter(our_name).grad
        if gradient is None:
            assert not expected.any(), f"{our_name} has no gradient"
            continue
        if row is not None:
            gradient = gradient[row]
        if ".pos_embed." in our_name and len(gradient) > len(expected):
            assert not gradient[len(expected) :].any(), f"{our_name} has a gradient at positions that do not occur"
            gradient = gradient[: len(expected)]
        scale = max(expected.abs().max().item(), 1e-4 * total_norm)
        difference = (gradient.reshape(expected.shape) - expected).abs()
        assert bool((difference <= GRADIENT * scale).all()), our_name
        num_compared += 1
    assert num_compared


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
        assert_near(vectors[key], outputs[f"{key}_embed"], atol, what=f"vectors of {key}")
