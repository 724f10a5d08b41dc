"""Checkpoint files in the layouts the original code writes, made of the golden weights."""

import argparse
import io
import json
import lzma
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from support.golden_cases import case, weights
from torch import Tensor

from onepeace.hub.convert import keys

GOLDEN = Path(__file__).parents[1] / "golden"
DEPTH = 3
ENCODER = {
    "embed_dim": 32,
    "ffn_embed_dim": 64,
    "layers": DEPTH,
    "attention_heads": 4,
    "layer_scale_init_value": 1e-6,
    "audio_adapter": {
        "feature_encoder_spec": "[(24, 10, 5)] + [(24, 3, 2)] * 2 + [(24,2,2)]",
        "bucket_size": 12,
    },
}


def inverted_key_map() -> keys.Rules:
    """Rules from our names to the original's; {j}, which the original counts from 1, is spelt out."""
    rows = []
    for theirs, ours in keys.TABLE:
        for j in range(9 if "{j}" in ours else 1):
            original = theirs.replace("{j+1}", str(j + 1))
            rows.append((ours.replace("{j}", str(j)), original.replace("{j}", str(j))))
    return keys.compile_table(rows, keys.FIELD_PATTERNS)


TO_ORIGINAL = inverted_key_map()


def to_original(name: str) -> str:
    """The released pretraining layout's name of one of our parameters."""
    return keys.translate(name, TO_ORIGINAL)


def cfg(task: dict[str, Any] | None = None, **model: Any) -> dict[str, Any]:
    """The parts of a trainer's configuration that matter."""
    defaults = {
        "max_src_length": 70,
        "patch_image_size": 64,
        "max_duration": 15,
        "bpe_dir": "../../utils/BPE",
    }
    return {
        "task": {**defaults, **(task or {})},
        "model": {"encoder": ENCODER, "decoder": None, **model},
    }


def wrapper(model: dict[str, Tensor], settings: Any) -> dict[str, Any]:
    """What the trainer saves around the weights."""
    return {
        "args": None,
        "cfg": settings,
        "model": model,
        "criterion": None,
        "optimizer_history": [
            {"criterion_name": "X", "lr_scheduler_state": {"lr": 1e-6}, "num_updates": 100},
        ],
        "task_state": {},
        "extra_state": {
            "metrics": [],
            "previous_training_time": 1.0,
            "train_iterator": {"epoch": 2},
        },
    }


def is_of_modality(name: str, modality: str) -> bool:
    parts = name.split(".")
    return f"decoder_{modality}_embed" in name or any(part.startswith(f"{modality}_") for part in parts)


def state(*modalities: str, heads: bool = False, decoder: bool = False, tables: int = 1) -> dict[str, Tensor]:
    """Golden weights of some modalities under the original's names, with the buffers it stores beside them."""
    tensors = dict(weights())
    for name in weights():
        first = name.partition(".")[0]
        is_head = first.endswith("_proj") or name == "logit_scale"
        is_decoder = first.startswith("decoder_") or "_mask_" in first
        absent = [modality for modality in ("text", "image", "audio") if modality not in modalities]
        is_absent = any(is_of_modality(name, modality) for modality in absent)
        if is_absent or (is_head and not heads) or (is_decoder and not decoder):
            del tensors[name]
    for modality in modalities:
        adapter = f"encoder_wrapper.{modality}_adapter"
        tensors[f"{adapter}.rp_bucket"] = torch.zeros(5, 5, dtype=torch.int64)
        table = tensors[f"{adapter}.rel_pos_table_list.0.weight"]
        for number in range(1, tables):
            tensors[f"{adapter}.rel_pos_table_list.{number}.weight"] = table.clone()
    tensors["encoder_wrapper.fusion_model.version"] = torch.tensor([3.0])
    return tensors


def released() -> dict[str, Tensor]:
    """The tensors of one-peace.pt: all modalities, projections, no logit_scale."""
    tensors = state("text", "image", "audio", heads=True)
    del tensors["logit_scale"]
    return tensors


def vision_branch() -> dict[str, Tensor]:
    """The released vision branch's names: no wrapper, no final norm."""
    renamed = {}
    for name, tensor in state("image").items():
        if "image_layer_norm" not in name and "version" not in name:
            name = name.replace("encoder_wrapper.fusion_model.", "encoder.")
            renamed[name.removeprefix("encoder_wrapper.")] = tensor
    return renamed


def video_network() -> dict[str, Tensor]:
    """The tensors of the released video network: the vision branch with adapters between frames, and five classes."""
    table = "image_adapter.rel_pos_table"
    branch = vision_branch()
    branch[f"{table}.weight"] = branch.pop(f"{table}_list.0.weight")
    branch |= case("vision_video").weights
    generator = torch.Generator().manual_seed(0)
    head = {
        "cls_head.fc_cls.weight": torch.randn(5, 32, generator=generator),
        "cls_head.fc_cls.bias": torch.randn(5, generator=generator),
    }
    return {f"backbone.{name}": tensor for name, tensor in branch.items()} | head


def bare_pickle(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def old_trainer_file(path: Path, model: dict[str, Tensor]) -> Path:
    """As old fairseq wrote: args as a Namespace, no cfg."""
    args = argparse.Namespace(arch="one_peace", task="x")
    torch.save({"args": args, "model": model}, path)
    return path


def small_vocabulary(folder: Path, size: int = 160) -> Path:
    """A vocabulary as large as the golden models' table, in the files of facebook/bart-base."""
    from tokenizers.pre_tokenizers import ByteLevel

    folder.mkdir()
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet())]
    ids = {piece: number for number, piece in enumerate(pieces[:size])}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def golden_vocabulary(folder: Path) -> tuple[Path, dict]:
    """The part of the released vocabulary that the stored texts need, at its own ids, in its files; and these texts."""
    golden = json.loads((GOLDEN / "media_text.json").read_text())
    encoder = {piece: number for piece, number in golden["vocab"].items() if number > 3}
    used = set(golden["vocab"].values())
    rows = [f"{number} 0\n" if number in used else f"madeupword{number} 0\n" for number in range(4, 50264)]
    (folder / "encoder.json").write_text(json.dumps(encoder))
    (folder / "dict.txt").write_text("".join(rows))
    merges = ["#version: 0.2", *golden["merges"], ""]
    (folder / "vocab.bpe").write_text("\n".join(merges), encoding="utf-8")
    return folder, golden


def golden_checkpoints(shared: Path, folder: Path, pattern: str = "*") -> Iterator[Path]:
    """The checkpoints of the original's layouts, unpacked."""
    for packed in (shared / "golden" / "checkpoints").glob(pattern):
        path = folder / packed.name.removesuffix(".xz")
        content = packed.read_bytes()
        if packed.suffix == ".xz":
            content = lzma.decompress(content)
        path.write_bytes(content)
        yield path


def saved(content: Any, **options: Any) -> bytes:
    """torch.save into memory."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()
