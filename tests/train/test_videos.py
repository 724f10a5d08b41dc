"""Clips in training and after: a model of frames starts from one of pictures, clips vary as a whole."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.clips import plain_video
from support.random_model import ADAPTERS, save_random_model
from support.training import recipe

from onepeace.config import ModelConfig
from onepeace.data.augment import make_augments
from onepeace.embed.embedder import Embedder
from onepeace.errors import UserError
from onepeace.hub import weights
from onepeace.model import OnePeace
from onepeace.processors import VideoProcessor
from onepeace.train.initial_weights import make_model
from onepeace.train.model_config import make_config

HEAD = {"kind": "classifier", "on": "video", "pool": "cls", "hidden_ratio": 0, "labels": ["run", "sit"]}


def test_model_of_frames_starts_from_one_of_pictures(tmp_path, caplog):
    start = save_random_model(tmp_path / "start")
    model = {"from": str(start), "modalities": ["video"], "projections": [], "copy": {"video": "image"},
             "adapters": {"video": {"frames": 2}}, "heads": {"classifier": HEAD}, "bias_per_block": True}  # fmt: skip
    data = {"train": [{"shards": "x.tar", "pair": ["video"], "targets": ["label"]}]}
    made = recipe(tmp_path, tmp_path / "run", model=model, data=data, processors={}, objective={"classification": {}})
    config = make_config(made)
    assert config.model.adapters == {"video": {**ADAPTERS["image"], "frames": 2}}
    caplog.set_level("INFO", "onepeace")
    own, given = make_model(made, config).state_dict(), weights.read_state(start)
    options = ", ".join(f"{name}={value}" for name, value in ADAPTERS["image"].items())
    assert f"and options of its adapter ({options})" in caplog.text
    fresh = set()
    for name, tensor in own.items():
        twin = name.replace(".video.", ".image.").replace("bias_tables.1", "bias_tables.0")
        if twin in given:
            assert torch.equal(tensor, given[twin]), name
        else:
            fresh.add(name.split(".")[2] if name.startswith(("adapters", "blocks")) else name.split(".")[0])
    assert fresh == {"clips", "time_embed", "heads"}


class Ramps(VideoProcessor):
    """Clips of two equal frames, whose pixels tell their places."""

    def load_clip(self, item, place=0.5):
        self.place = place
        pixels = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60)
        return [Image.fromarray(np.stack([pixels % 256, pixels // 60, pixels % 60], -1).astype(np.uint8))] * 2


def test_frames_of_a_clip_are_varied_alike_and_clips_are_drawn_from_the_whole_video():
    augment, processor = (
        make_augments({"video": {"crop_scale": [0.2, 0.5], "flip": True, "color": 0.3}})["video"],
        Ramps(),
    )
    clips, places = [], []
    for seed in range(8):
        clip, _ = augment.vary("a.mp4", "", processor, np.random.default_rng(seed), None)
        clips.append(clip)
        places.append(processor.place)
    pixels = augment.collate(clips, processor)["pixels"]
    assert pixels.shape == (8, 2, 3, 256, 256)
    assert torch.equal(pixels[:, 0], pixels[:, 1])
    assert len({float(each.mean()) for each in pixels}) == 8
    assert 0 <= min(places) < 0.3 < 0.7 < max(places) <= 1


def test_views_of_a_video_are_cuts_of_clips():
    """Pixels tell their columns: 40 x 60 is cut to its left, middle and right squares."""
    places = []

    class Placed(Ramps):
        def load_clip(self, item, place=0.5):
            places.append(place)
            return super().load_clip(item, place)

    plain = {"frames": 2, "size": 40, "mean": [0.0] * 3, "std": [1 / 255] * 3}
    views = Placed(**plain, clips=3, crops=3).views("a.mp4")
    assert [view.shape for view in views] == [(2, 3, 40, 40)] * 9
    assert places == [0.0, 0.5, 1.0]
    assert [round(view[0, 2, 0, 0].item()) for view in views] == [0, 10, 20] * 3
    (one,) = Placed(**plain).views("a.mp4")
    assert torch.equal(one, Placed(**plain).decode("a.mp4"))
    assert places[-2:] == [0.5, 0.5]
    made = Placed(**plain, clips=3, crops=3)
    assert VideoProcessor.from_config(made.settings).settings == made.settings
    with pytest.raises(UserError, match="several crops need resize: crop; it is squash"):
        VideoProcessor(crops=3, resize="squash")


def test_a_head_averages_its_outputs_over_the_views_of_each_video(tmp_path):
    options = {"patch_size": 16, "grid": 2, "bias_grid": 2, "frames": 2}
    head = {**HEAD, "pool": "mean", "num_classes": 2}
    model = ModelConfig(32, 16, 1, 4, 48, 1.0, init_std=0.3, adapters={"video": options}, heads={"acts": head})
    module = OnePeace(model).eval()
    processor = VideoProcessor(frames=2, stride=2, size=32, clips=3, crops=2)
    paths = [tmp_path / name for name in ("a.mp4", "b.mp4")]
    for path, level in zip(paths, (20, 5), strict=True):
        path.write_bytes(plain_video(9, level=level))
    found = Embedder(module, {"video": processor}).predict(paths, top=2)
    for path, result in zip(paths, found, strict=True):
        views = torch.stack(processor.views(path))
        assert len(views) == 6
        with torch.no_grad():
            logits = module.predict({"video": {"pixels": views}}, head="acts")
        assert (logits[0] - logits[-1]).abs().max() > 1e-3
        wanted = dict(zip(HEAD["labels"], logits.mean(0).softmax(0).tolist(), strict=True))
        assert {one["label"]: one["score"] for one in result["labels"]} == pytest.approx(wanted, abs=1e-5)
