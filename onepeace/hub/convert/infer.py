"""Inference of the configuration of an original ONE-PEACE checkpoint from its tensors.

Sizes come from the shapes. The file's cfg, if any, adds values that the shapes do not determine: limits, and the
modality that a classifier reads.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onepeace.config import Config, Options, build
from onepeace.errors import UserError
from onepeace.hub.convert.keys import MODALITIES

STRIDES = {10: 5, 3: 2, 2: 2}
"""Strides of the released audio convolutions by kernel size."""
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
CLIP_LENGTH = 128
"""Number of video frames that a released clip spans: 16 frames with stride 8, or 32 with stride 4."""
Cfg = Mapping[str, Any]


def infer_config(path: Path, shapes: Mapping[str, tuple[int, ...]], cfg: Cfg) -> Config:
    """Infer the configuration of a model from the shapes of its tensors by our names.

    `cfg` is the original trainer's configuration, {} if unknown. UserError when a tensor is missing.
    """
    return _OnePeaceShapes(path, shapes).config(cfg)


HEAD_TASKS = {"vqa": "answer", "refcoco": "box", "aqa": "choice", "avqa": "choice", "fsd50k": "labels"}
"""Task of the released head (onepeace/embed/predict.py) by the original's name of the fine-tuning; others classify."""


@dataclass(frozen=True)
class Shapes:
    """Tensor shapes by our names."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]

    def of(self, name: str) -> tuple[int, ...]:
        if name not in self.shapes:
            raise UserError(f"incomplete, it lacks {name}", where=self.path)
        return self.shapes[name]

    def count(self, pattern: str) -> int:
        """1 + the largest number at {} among the names that match the pattern; 0 if none does."""
        numbered = re.compile(re.escape(pattern).replace(r"\{\}", r"(\d+)"))
        count = 0
        for name in self.shapes:
            match = numbered.fullmatch(name)
            if match:
                count = max(count, int(match[1]) + 1)
        return count


class _OnePeaceShapes(Shapes):
    """Each method infers one part of the configuration."""

    def side(self, cells: int, what: str) -> int:
        side = math.isqrt(cells)
        if side * side != cells:
            raise UserError(f"{what} has {cells} cells, which is not a square", where=self.path)
        return side

    def config(self, cfg: Cfg) -> Config:
        task = section(cfg, "task")
        model = section(cfg, "model")
        keys = [key for key in MODALITIES if f"adapters.{key}.cls_token" in self.shapes]
        if not keys:
            raise UserError(
                f"no adapter among its {len(self.shapes)} tensors; not a ONE-PEACE checkpoint", where=self.path
            )
        dim = self.of(f"adapters.{keys[0]}.cls_token")[-1]
        projections = [key for key in keys if f"heads.{key}.weight" in self.shapes]
        tables = {key: self.count(f"adapters.{key}.bias_tables.{{}}") for key in keys}
        if len(set(tables.values())) > 1 or 0 in tables.values():
            raise UserError(f"modalities differ in their number of bias tables ({tables})", where=self.path)
        adapters = {key: getattr(self, key)() for key in keys}
        layer_scale = None
        if "blocks.0.ls1.gain" in self.shapes:
            layer_scale = section(model, "encoder").get("layer_scale_init_value", 1e-6)
        settings: Options = {
            "dim": dim,
            "embed_dim": self.of(f"heads.{projections[0]}.weight")[0] if projections else dim,
            "depth": self.count("blocks.{}.norm1.weight"),
            "num_heads": self.of(f"adapters.{keys[0]}.bias_tables.0")[1],
            "ffn_dim": self.of(f"blocks.0.ffn.{keys[0]}.gate.weight")[0],
            "layer_scale": layer_scale,
            "bias_per_block": tables[keys[0]] > 1,
            "adapters": adapters,
            "projections": projections,
            "final_norm": any(name.startswith("norms.") for name in self.shapes),
            "logit_scale": "logit_scale" in self.shapes,
            "decoder": self.decoder(section(model, "decoder"), dim, keys),
            "heads": self.heads(task, model, dim, keys),
        }
        return build(Config, {"model": settings, "processors": self.processors(task, adapters)}, str(self.path))

    def text(self) -> Options:
        options = {
            "vocab_size": self.of("adapters.text.token_embed.weight")[0],
            "num_positions": self.of("adapters.text.pos_embed.weight")[0],
            "num_buckets": (self.of("adapters.text.bias_tables.0")[0] - 2) // 2,
        }
        return options | self.types("text")

    def image(self) -> Options:
        return self.patches("image") | self.types("image")

    def video(self) -> Options:
        return self.patches("video") | {"frames": self.of("adapters.video.time_embed")[1]}

    def patches(self, key: str) -> Options:
        kernels = [self.of(f"adapters.{key}.stem.convs.{i}.weight")[-1] for i in range(3)]
        num_positions = self.of(f"adapters.{key}.pos_embed.weight")[0]
        num_biases = self.of(f"adapters.{key}.bias_tables.0")[0]
        bias_side = self.side(num_biases - 3, f"the {key} bias table")
        return {
            "stem": "hmlp",
            "patch_size": math.prod(kernels),
            "grid": self.side(num_positions - 1, "pos_embed"),
            "bias_grid": (bias_side + 1) // 2,
        }

    def audio(self) -> Options:
        count = self.count("adapters.audio.stem.convs.{}.weight")
        sizes = [self.of(f"adapters.audio.stem.convs.{i}.weight")[::2] for i in range(count)]
        if not all(kernel in STRIDES for _, kernel in sizes):
            raise UserError(f"the strides of audio convolutions {sizes} are unknown", where=self.path)
        conv = self.of("adapters.audio.pos_conv.0.weight")
        options = {
            "stem": "wave",
            "convs": [[channels, kernel, STRIDES[kernel]] for channels, kernel in sizes],
            "pos_depth": self.count("adapters.audio.pos_conv.{}.weight"),
            "pos_kernel": conv[2],
            "pos_groups": conv[0] // conv[1],
            "num_buckets": (self.of("adapters.audio.bias_tables.0")[0] - 2) // 2,
        }
        return options | self.types("audio")

    def types(self, key: str) -> dict[str, int]:
        name = f"adapters.{key}.type_embed"
        if name not in self.shapes:
            return {}
        return {"num_types": self.shapes[name][0]}

    def decoder(self, decoder: Cfg, encoder_dim: int, keys: list[str]) -> Options | None:
        depth = self.count("decoder.blocks.{}.norm1.weight")
        if not depth:
            return None
        dim = self.of("decoder.blocks.0.norm1.weight")[0]
        head_dim = encoder_dim // self.of(f"adapters.{keys[0]}.bias_tables.0")[1]
        options: Options = {}
        for key in keys:
            num_positions = self.of(f"decoder.pos_embed.{key}.weight")[0]
            if key == "image":
                options[key] = {"grid": self.side(num_positions - 1, "decoder pos_embed")}
            else:
                options[key] = {"num_positions": num_positions}
        return {
            "dim": dim,
            "depth": depth,
            # The decoder has no bias tables to infer it from; released decoders have the encoder's head width.
            "num_heads": decoder.get("attention_heads") or max(1, dim // head_dim),
            "ffn_dim": self.of(f"decoder.blocks.0.ffn.{keys[0]}.gate.weight")[0],
            "options": options,
        }

    def heads(self, task: Cfg, model: Cfg, dim: int, keys: list[str]) -> Options:
        """The released classification head, under the name "classifier"."""
        if "heads.classifier.out.weight" not in self.shapes:
            return {}
        pools = {"heads.classifier.pool.q": "attention", "heads.classifier.norm.weight": "mean"}
        hidden = self.shapes.get("heads.classifier.hidden.weight")
        # The released rule: text features, else image, else audio; grounding may use image features instead.
        first = [key for key in keys if not (key == "text" and model.get("use_image_features") and "image" in keys)]
        classifier = {
            "kind": "classifier",
            "on": first[0],
            "num_classes": self.of("heads.classifier.out.weight")[0],
            "pool": next((pool for name, pool in pools.items() if name in self.shapes), "cls"),
            "num_heads": self.shapes.get("heads.classifier.pool.q", (None,))[0],
            "hidden_ratio": hidden[0] // dim if hidden else 0,
            "pooler": "heads.classifier.pooler.weight" in self.shapes,
            "inputs": (hidden or self.of("heads.classifier.out.weight"))[1] // dim,
        }
        if task.get("_name") in HEAD_TASKS:
            classifier["task"] = HEAD_TASKS[task["_name"]]
        return {"classifier": classifier}

    def processors(self, task: Cfg, adapters: Mapping[str, Any]) -> Options:
        """Preprocessing settings of the original code for this model."""
        processors: Options = {}
        if "text" in adapters:
            limit = task.get("max_src_length", 70)
            # As in the original's public functions; its datasets also clean captions.
            processors["text"] = {"max_tokens": limit, "lower": True, "clean": False, "prefix_space": True}
            if task.get("_name") in ("aqa", "avqa"):
                # Questions and answers were neither lower-cased nor cut in fine-tuning; eos and CLS need two positions.
                limit = adapters["text"]["num_positions"] - 2
                processors["text"].update(max_tokens=limit, lower=False)
        for key in ("image", "video"):
            if key in adapters:
                size = adapters[key]["patch_size"] * adapters[key]["bias_grid"]
                processors[key] = {"size": size, "mean": CLIP_MEAN, "std": CLIP_STD}
        if "video" in adapters:
            frames = adapters["video"]["frames"]
            processors["video"] |= {"frames": frames, "stride": max(1, CLIP_LENGTH // frames)}
        if "audio" in adapters:
            seconds = float(task.get("max_duration", 15))
            processors["audio"] = {"sample_rate": 16000, "max_seconds": seconds, "min_seconds": 1.0}
        return processors


def section(cfg: Cfg, key: str) -> Cfg:
    """A section of a trainer's cfg; {} if there is no mapping of that name."""
    value = cfg.get(key)
    return value if isinstance(value, dict) else {}
