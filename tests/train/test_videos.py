"""Clips in training and after: a model of frames starts from one of pictures, clips vary as a whole."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.clips import plain_video
from support.random_model import ADAPTERS, save_random_model
from support.training import make_recipe

from onepeace.config import ModelConfig
from onepeace.data.augment import make_augments
from onepeace.embed.embedder import Embedder
from onepeace.errors import UserError
from onepeace.hub import weights
from onepeace.model import OnePeace
from onepeace.processors import VideoProcessor
from onepeace.train.initial_weights import make_model
from onepeace.train.model_config import make_config

LABELS = ["run", "sit"]
HEAD = {"kind": "classifier", "on": "video", "pool": "cls", "hidden_ratio": 0, "labels": LABELS}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """The folder of a model of pictures, which a training of videos starts from."""
    return save_random_model(tmp_path_factory.mktemp("pictures") / "model")


@pytest.fixture
def video_recipe(pictures, tmp_path):
    model = {
        "from": str(pictures),
        "modalities": ["video"],
        "projections": [],
        "copy": {"video": "image"},
        "adapters": {"video": {"frames": 2}},
        "heads": {"classifier": HEAD},
        "bias_per_block": True,
    }
    return make_recipe(
        tmp_path,
        tmp_path / "run",
        model=model,
        data={"train": [{"shards": "x.tar", "pair": ["video"], "targets": ["label"]}]},
        processors={},
        objective={"classification": {}},
    )


def test_video_adapter_has_options_of_image(video_recipe):
    assert make_config(video_recipe).model.adapters == {"video": {**ADAPTERS["image"], "frames": 2}}


def test_video_weights_are_those_of_image(video_recipe, pictures):
    image_weights = weights.read_state(pictures)

    video_weights = make_model(video_recipe, make_config(video_recipe)).state_dict()

    for name, tensor in video_weights.items():
        if "clips" in name or "time_embed" in name or name.startswith("heads."):
            continue  # pictures have no such thing
        twin = name.replace(".video.", ".image.").replace("bias_tables.1", "bias_tables.0")
        assert torch.equal(tensor, image_weights[twin]), name


PLAIN = {
    "frames": 2,
    "size": 40,
    "mean": [0.0, 0.0, 0.0],
    "std": [1 / 255, 1 / 255, 1 / 255],
}


class Ramps(VideoProcessor):
    """Clips of two equal frames, whose pixels tell their places."""

    def __init__(self, **options):
        super().__init__(**options)
        self.loaded_at = []

    def load_clip(self, item, place=0.5):
        self.loaded_at.append(place)
        numbers = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60)
        pixels = np.stack([numbers % 256, numbers // 60, numbers % 60], -1)
        return [Image.fromarray(pixels.astype(np.uint8))] * 2


def varied_clips(processor):
    """Pixels (8, T, 3, H, W) of eight variants of a video."""
    augments = make_augments({"video": {"crop_scale": [0.2, 0.5], "flip": True, "color": 0.3}})
    augment = augments["video"]
    clips = []
    for seed in range(8):
        clip, _ = augment.vary("a.mp4", "", processor, np.random.default_rng(seed), None)
        clips.append(clip)
    return augment.collate(clips, processor)["pixels"]


def test_clips_from_whole_video_vary_as_a_whole():
    processor = Ramps()

    pixels = varied_clips(processor)

    assert pixels.shape == (8, 2, 3, 256, 256)
    assert torch.equal(pixels[:, 0], pixels[:, 1])
    assert len({float(clip.mean()) for clip in pixels}) == 8
    assert 0 <= min(processor.loaded_at) < 0.3
    assert 0.7 < max(processor.loaded_at) <= 1


def test_views_of_video_are_cuts_of_clips():
    """Pixels tell their columns: 40 x 60 is cut to its left, middle and right squares."""
    processor = Ramps(**PLAIN, clips=3, crops=3)

    views = processor.views("a.mp4")

    assert [view.shape for view in views] == [(2, 3, 40, 40)] * 9
    assert processor.loaded_at == [0.0, 0.5, 1.0]
    first_columns = [round(view[0, 2, 0, 0].item()) for view in views]
    assert first_columns == [0, 10, 20] * 3


def test_several_crops_need_resize_by_crop():
    with pytest.raises(UserError, match="crops need resize: crop"):
        VideoProcessor(crops=3, resize="squash")


@pytest.fixture
def classifier():
    """A model of clips of two frames with one head, in eval mode."""
    config = ModelConfig(
        dim=32,
        embed_dim=16,
        depth=1,
        num_heads=4,
        ffn_dim=48,
        layer_scale=1.0,
        init_std=0.3,
        adapters={"video": {"patch_size": 16, "grid": 2, "bias_grid": 2, "frames": 2}},
        heads={"acts": {**HEAD, "pool": "mean", "num_classes": 2}},
    )
    return OnePeace(config).eval()


def test_prediction_is_mean_over_views_of_video(classifier, tmp_path):
    processor = VideoProcessor(frames=2, stride=2, size=32, clips=3, crops=2)
    paths = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    paths[0].write_bytes(plain_video(9, level=20))
    paths[1].write_bytes(plain_video(9, level=5))

    results = Embedder(classifier, {"video": processor}).predict(paths, top=2)

    for path, result in zip(paths, results, strict=True):
        assert len(result["labels"]) == 2
        views = torch.stack(processor.views(path))
        assert len(views) == 6
        with torch.no_grad():
            logits = classifier.predict({"video": {"pixels": views}}, head="acts")
        assert (logits[0] - logits[-1]).abs().max() > 1e-3
        scores = logits.mean(0).softmax(0).tolist()
        for entry in result["labels"]:
            expected = scores[LABELS.index(entry["label"])]
            assert entry["score"] == pytest.approx(expected, abs=1e-5)
