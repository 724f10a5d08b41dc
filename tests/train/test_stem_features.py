"""Features of frozen stems, computed once: a run reads them in place of its items."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.training import MODEL, recipe

from onepeace.data.frozen_cache import FrozenCache, Output
from onepeace.data.sample import Sample, item_name
from onepeace.errors import UserError
from onepeace.processors import ImageProcessor
from onepeace.train import loop
from onepeace.train.frozen_outputs import compute_missing
from onepeace.train.log import read_log
from onepeace.train.run import Run
from onepeace.train.stem_features import StemViews

ADAPTERS = {
    "text": {"vocab_size": 400, "num_positions": 32, "num_buckets": 8},
    "image": {"stem": "timm", "name": "test_efficientnet", "patch_size": 32, "grid": 2, "bias_grid": 2},
    "audio": {"stem": "aisfx", "width": 2, "num_buckets": 8, "pos_depth": 1, "pos_groups": 4},
}
SOURCES = [{"shards": "squares.tar", "pair": ["image", "text"]}, {"shards": "tones.tar", "pair": ["audio", "text"]}]


def stem_recipe(root, out, views, data=(), freeze=("adapters.*.stem.network.*",)):
    """A recipe of two steps with frozen stems of pictures and sounds."""
    modalities = list(ADAPTERS)
    return recipe(
        root,
        out,
        steps=2,
        model={
            **MODEL,
            "adapters": ADAPTERS,
            "modalities": modalities,
            "projections": modalities,
            "pretrained": False,
        },
        data={"train": SOURCES, "stem_views": views, **dict(data)},
        run={"batch_size": 8, "log_every": 1},
        processors={"image": {"size": 64}, "text": {"max_tokens": 16}, "audio": {"min_seconds": 0.5}},
        freeze=list(freeze),
    )


def features_of(run, modality):
    """The features that the batches of a run are built from."""
    return run.steps.builder.decoder.features[modality]


def losses(out):
    return [line["loss"] for line in read_log(out / "log.jsonl")]


def test_without_augmentation_the_losses_are_those_of_the_items(root, tmp_path):
    loop.train(stem_recipe(root, tmp_path / "live", {}))
    loop.train(stem_recipe(root, tmp_path / "kept", {"image": 1, "audio": 1}))
    assert losses(tmp_path / "kept") == pytest.approx(losses(tmp_path / "live"), rel=2e-4)  # kept as float16


def test_what_is_there_is_not_computed_again(root, tmp_path, monkeypatch):
    folder = tmp_path / "stems"
    data = {"frozen_folder": str(folder), "augment": {"image": {"crop_scale": [0.5, 1.0]}}}
    loop.train(stem_recipe(root, tmp_path / "first", {"image": 2}, data=data))
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("part-*")}
    decoded = []
    load = ImageProcessor.load

    def noted(self, item):
        decoded.append(item)
        return load(self, item)

    monkeypatch.setattr(ImageProcessor, "load", noted)
    loop.train(stem_recipe(root, tmp_path / "second", {"image": 2}, data=data))
    assert not decoded
    assert losses(tmp_path / "second") == losses(tmp_path / "first")
    # A part that was not finished is made again.
    (cache,) = folder.iterdir()
    next(cache.glob("*.json")).unlink()
    loop.train(stem_recipe(root, tmp_path / "third", {"image": 2}, data=data))
    assert len(decoded) == 96
    # Nor are features computed for a run that is refused.
    with pytest.raises(UserError, match=r"holds a run with another data\.stem_views"):
        Run(stem_recipe(root, tmp_path / "third", {"image": 3}, data=data), torch.device("cpu"))
    assert list(folder.iterdir()) == [cache]
    assert {path.name for path in cache.glob("part-*")} == {path.name for path in files}


def test_views_differ_and_a_mixed_one_has_both_captions(root, tmp_path):
    augment = {"audio": {"mix": 1.0, "shift": True}}
    wanted = stem_recipe(root, tmp_path, {"audio": 3}, data={"augment": augment})
    run = Run(wanted, torch.device("cpu"))
    features = features_of(run, "audio")
    for views in features.places.values():
        assert len(views) == 3
        assert all(view.partner for view in views)
    name = next(iter(features.items))
    drawn = set()
    for seed in range(20):
        values, _ = features.draw(name, np.random.default_rng(seed))
        drawn.add(values.tobytes())
    assert len(drawn) == 3
    batches = run.steps[0].batches
    sounds = next(batch for batch in batches if "audio" in batch.inputs)
    assert sounds.inputs["audio"]["features"].shape[2] == 16
    assert all(" and " in caption for caption in sounds.captions)


def test_a_run_over_less_data_shares_the_folder(root, tmp_path):
    """Views with items mixed in that it does not have are left to the other run."""
    data = {"augment": {"audio": {"mix": 1.0}}, "frozen_folder": str(tmp_path / "stems")}
    run = Run(stem_recipe(root, tmp_path / "whole", {"audio": 3}, data=data), torch.device("cpu"))
    whole = features_of(run, "audio")
    items = dict(list(whole.items.items())[:20])
    few = FrozenCache(whole.folder, items)
    partners = []
    for views in few.places.values():
        partners += [view.partner for view in views]
    assert 0 < len(partners) < 60
    assert set(partners) <= few.items.keys()


def test_a_folder_made_anew_is_read_anew(tmp_path):
    for value in (1, 2):
        values = np.full((2, 3), value, np.float16)
        output = Output("a", values)
        cache = FrozenCache(tmp_path / "frozen", {"a": None})
        compute_missing(cache, lambda names, output=output: [output], 8)
        assert np.array_equal(cache.read(cache.places["a"][0]), values)
        shutil.rmtree(tmp_path / "frozen")


def test_outputs_for_an_earlier_content_of_a_shard_are_not_used(tmp_path):
    shard = tmp_path / "pairs-00000.tar"
    for content in (1, 2):
        shard.write_bytes(bytes(content))
        items = {f"{shard.name}/{key}": Sample(key, str(shard), {}, {}) for key in "ab"}
        cache = FrozenCache(tmp_path / "frozen", items)
        assert cache.missing == list(items)
        first, partner = items
        outputs = [Output(name, np.full((1, 1), content), partner) for name in items]
        compute_missing(cache, lambda names, outputs=outputs: outputs, 8)
        assert not cache.missing
        (place,) = cache.places[first]
        assert cache.read(place).item() == content
        assert place.partner == partner


def test_two_runs_at_once_do_not_write_the_same_part(root, tmp_path, monkeypatch):
    run = Run(stem_recipe(root, tmp_path / "run", {"image": 1}), torch.device("cpu"))
    samples = list(features_of(run, "image").items.values())
    write = FrozenCache.write
    together = threading.Barrier(2)

    def write_slowly(*arguments):
        with suppress(threading.BrokenBarrierError):
            together.wait(0.5)  # if they are not kept apart, both have their number by now
        write(*arguments)

    monkeypatch.setattr(FrozenCache, "write", write_slowly)

    def compute(some_samples):
        views = StemViews(
            key="image",
            adapter=run.model.adapters["image"],
            processor=run.processors["image"],
            options={},
            samples=some_samples,
            views=1,
            device=torch.device("cpu"),
            use_bfloat16=False,
        )
        return views.keep(tmp_path / "shared").folder

    with ThreadPoolExecutor(2) as pool:
        (folder,) = set(pool.map(compute, [samples[:8], samples[8:16]]))
    items = {item_name(sample): sample for sample in samples}
    places = FrozenCache(folder, items).places
    assert len(places) == 16
    assert {views[0].part for views in places.values()} == {0, 1}


def test_different_items_of_one_name_are_refused():
    samples = []
    for folder in ("a", "b"):
        samples.append(Sample("p", f"{folder}/pairs-00000.tar", {"image": folder.encode()}, {}))
    adapter = SimpleNamespace(stem=SimpleNamespace(network=torch.nn.Identity()))
    with pytest.raises(UserError, match=r"a/pairs-00000\.tar and b/pairs-00000\.tar have different items of one name"):
        StemViews("image", adapter, None, {}, samples, 1, torch.device("cpu"), False)


@pytest.mark.parametrize(
    ("views", "fields", "message"),
    [
        ({"image": 1}, {"freeze": []}, r"data.stem_views.image: .* frozen network only; add adapters.image.stem"),
        ({"text": 1}, {}, r"data.stem_views.text: leave it out; a text is drawn anew"),
    ],
)
def test_mistakes_are_one_line(root, tmp_path, views, fields, message):
    with pytest.raises(UserError, match=message):
        loop.train(stem_recipe(root, tmp_path, views, **fields))
