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
SPEC = "[(24, 10, 5)] + [(24, 3, 2)] * 2 + [(24,2,2)]"
ENCODER = {
    **{"embed_dim": 32, "ffn_embed_dim": 64, "layers": DEPTH, "attention_heads": 4, "layer_scale_init_value": 1e-6},
    "audio_adapter": {"feature_encoder_spec": SPEC, "bucket_size": 12},
}


TO_ORIGINAL = keys.compile_table(
    [
        (ours.replace("{j}", str(j)), theirs.replace("{j+1}", str(j + 1)).replace("{j}", str(j)))
        for theirs, ours in keys.TABLE
        for j in range(9 if "{j}" in ours else 1)
    ],
    keys._VALUES,
)


def to_original(name: str) -> str:
    """The released pretraining layout's name of one of our parameters."""
    return keys.translate(name, TO_ORIGINAL)


def cfg(task: dict[str, Any] | None = None, **model: Any) -> dict[str, Any]:
    """The parts of a trainer's configuration that matter."""
    defaults = {"max_src_length": 70, "patch_image_size": 64, "max_duration": 15, "bpe_dir": "../../utils/BPE"}
    return {"task": defaults | (task or {}), "model": {"encoder": ENCODER, "decoder": None, **model}}


def wrapper(model: dict[str, Tensor], settings: Any) -> dict[str, Any]:
    """What the trainer saves around the weights."""
    history = [{"criterion_name": "X", "lr_scheduler_state": {"lr": 1e-6}, "num_updates": 100}]
    extra = {"metrics": [], "previous_training_time": 1.0, "train_iterator": {"epoch": 2}}
    return {"args": None, "cfg": settings, "model": model, "criterion": None, "optimizer_history": history,
            "task_state": {}, "extra_state": extra}  # fmt: skip


def state(*modalities: str, heads: bool = False, decoder: bool = False, tables: int = 1) -> dict[str, Tensor]:
    """Golden weights of some modalities under the original's names, with the buffers it stores beside them."""
    absent = [f"{name}_" for name in ("text", "image", "audio") if name not in modalities]
    kept = {}
    for name, tensor in weights().items():
        parts = name.split(".")
        if any(part.startswith(mark) for part in parts for mark in absent):
            continue
        if any(f"decoder_{mark}embed" in name for mark in absent):
            continue
        if not heads and (parts[0].endswith("_proj") or name == "logit_scale"):
            continue
        if not decoder and (parts[0].startswith("decoder_") or "_mask_" in parts[0]):
            continue
        kept[name] = tensor
    for modality in modalities:
        adapter = f"encoder_wrapper.{modality}_adapter"
        kept[f"{adapter}.rp_bucket"] = torch.zeros(5, 5, dtype=torch.int64)
        for number in range(1, tables):
            kept[f"{adapter}.rel_pos_table_list.{number}.weight"] = kept[
                f"{adapter}.rel_pos_table_list.0.weight"
            ].clone()
    kept["encoder_wrapper.fusion_model.version"] = torch.tensor([3.0])
    return kept


def released() -> dict[str, Tensor]:
    """The tensors of one-peace.pt: all modalities, projections, no logit_scale."""
    return {
        name: tensor for name, tensor in state("text", "image", "audio", heads=True).items() if name != "logit_scale"
    }


def vision_branch() -> dict[str, Tensor]:
    """The released vision branch's names: no wrapper, no final norm."""
    renamed = {}
    for name, tensor in state("image").items():
        if "image_layer_norm" not in name and "version" not in name:
            renamed[name.replace("encoder_wrapper.fusion_model.", "encoder.").replace("encoder_wrapper.", "")] = tensor
    return renamed


def video_network() -> dict[str, Tensor]:
    """The tensors of the released video network: the vision branch with adapters between frames, and five classes."""
    table = "image_adapter.rel_pos_table"
    branch = {name.replace(f"{table}_list.0", table): tensor for name, tensor in vision_branch().items()}
    generator = torch.Generator().manual_seed(0)
    head = {"weight": torch.randn(5, 32, generator=generator), "bias": torch.randn(5, generator=generator)}
    return {
        **{f"backbone.{name}": tensor for name, tensor in (branch | case("vision_video").weights).items()},
        **{f"cls_head.fc_cls.{name}": tensor for name, tensor in head.items()},
    }


def bare_pickle(path: Path, content: Any, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(content, protocol=protocol))
    return path


def old_trainer_file(path: Path, model: dict[str, Tensor]) -> Path:
    """As old fairseq wrote: args as a Namespace, no cfg."""
    torch.save({"args": argparse.Namespace(arch="one_peace", task="x"), "model": model}, path)
    return path


def small_vocabulary(folder: Path, size: int = 160) -> Path:
    """A vocabulary as large as the golden models' table, in the files of facebook/bart-base."""
    from tokenizers.pre_tokenizers import ByteLevel

    folder.mkdir()
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet())][:size]
    (folder / "vocab.json").write_text(json.dumps({piece: number for number, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


def golden_vocabulary(folder: Path) -> tuple[Path, dict]:
    """The part of the released vocabulary that the stored texts need, at its own ids, in its files; and these texts."""
    golden = json.loads((GOLDEN / "media_text.json").read_text())
    (folder / "encoder.json").write_text(json.dumps({p: i for p, i in golden["vocab"].items() if i > 3}))
    used = {str(i) for i in golden["vocab"].values()}
    rows = (str(i) if str(i) in used else f"madeupword{i}" for i in range(4, 50264))
    (folder / "dict.txt").write_text("".join(f"{row} 0\n" for row in rows))
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + "\n".join(golden["merges"]) + "\n", encoding="utf-8")
    return folder, golden


def golden_checkpoints(shared: Path, folder: Path, pattern: str = "*") -> Iterator[Path]:
    """The checkpoints of the original's layouts, unpacked."""
    for packed in (shared / "golden" / "checkpoints").glob(pattern):
        path = folder / packed.name.removesuffix(".xz")
        path.write_bytes(lzma.decompress(packed.read_bytes()) if packed.suffix == ".xz" else packed.read_bytes())
        yield path


def saved(content: Any, **options: Any) -> bytes:
    """torch.save into memory."""
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()
