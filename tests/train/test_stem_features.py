"""Features of frozen stems, computed once: a run reads them in place of its items."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.training import series, stem_recipe

from onepeace.data.sample import Sample
from onepeace.errors import UserError
from onepeace.model.stems import PretrainedStem
from onepeace.processors import ImageProcessor
from onepeace.train import trainer
from onepeace.train.frozen import FrozenCache, Output, StemViews, compute_missing
from onepeace.train.trainer import Trainer

CPU = torch.device("cpu")


def features_of(run, modality):
    """The features that the batches of a run are built from."""
    return run.steps.builder.features[modality]


def test_features_without_augmentation_train_as_items(root, tmp_path):
    trainer.train(stem_recipe(root, tmp_path / "live", {}))
    trainer.train(stem_recipe(root, tmp_path / "kept", {"image": 1, "audio": 1}))

    losses = series(tmp_path / "live", "loss")
    assert series(tmp_path / "kept", "loss") == pytest.approx(losses, rel=2e-4)  # kept as float16


@pytest.fixture
def loaded(monkeypatch):
    """The pictures that are decoded from now on."""
    pictures = []
    load = ImageProcessor.load

    def load_and_note(self, item, **options):
        pictures.append(item)
        return load(self, item, **options)

    monkeypatch.setattr(ImageProcessor, "load", load_and_note)
    return pictures


def test_features_are_computed_again_only_if_damaged(root, tmp_path, loaded):
    folder = tmp_path / "stems"

    def losses_of_run(name):
        loaded.clear()
        data = {"frozen_folder": str(folder), "augment": {"image": {"crop_scale": [0.5, 1.0]}}}
        trainer.train(stem_recipe(root, tmp_path / name, {"image": 2}, data=data))
        return series(tmp_path / name, "loss")

    losses = losses_of_run("first")
    assert losses_of_run("second") == losses
    assert not loaded

    (part,) = folder.rglob("part-*")
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    assert losses_of_run("third") == losses
    assert loaded
    assert list(folder.rglob("part-*")) == [part]


@pytest.fixture(scope="module")
def mixed_run(root, tmp_path_factory):
    """A run whose sounds have three views, each with a second sound mixed in."""
    data = {"augment": {"audio": {"mix": 1.0, "shift": True}}}
    out = tmp_path_factory.mktemp("mixed")
    return Trainer(stem_recipe(root, out, {"audio": 3}, data=data), CPU)


def test_views_of_item_differ(mixed_run):
    features = features_of(mixed_run, "audio")
    for views in features.places.values():
        assert len(views) == 3
        assert all(view.partner for view in views)

    name = next(iter(features.items))
    drawn = set()
    for seed in range(20):
        values, _ = features.draw(name, np.random.default_rng(seed))
        drawn.add(values.tobytes())

    assert len(drawn) == 3


def test_mixed_view_has_both_captions(mixed_run):
    batches = mixed_run.steps[0].batches
    (batch,) = (batch for batch in batches if "audio" in batch.inputs)

    assert batch.inputs["audio"]["features"].shape[2] == 16
    assert all(" and " in caption for caption in batch.captions)


def test_run_over_less_data_shares_folder(mixed_run):
    """Views with items mixed in that it does not have are left to the other run."""
    features = features_of(mixed_run, "audio")
    few_items = dict(list(features.items.items())[:20])

    cache = FrozenCache(features.folder, few_items)

    partners = []
    for views in cache.places.values():
        partners += [view.partner for view in views]
    assert 0 < len(partners) < 60
    assert set(partners) <= few_items.keys()


def test_outputs_of_changed_shard_are_not_used(tmp_path):
    shard = tmp_path / "pairs-00000.tar"
    for size in (1, 2):
        shard.write_bytes(bytes(size))
        items = {f"{shard.name}/{key}": Sample(key, str(shard), {}, {}) for key in "ab"}
        first, partner = items
        values = np.full((1, 1), size)
        outputs = [Output(name, values, partner) for name in items]
        cache = FrozenCache(tmp_path / "frozen", items)
        assert cache.missing == list(items)

        compute_missing(cache, lambda names, outputs=outputs: outputs, 8)

        assert not cache.missing
        (view,) = cache.places[first]
        assert cache.read(view).item() == size
        assert view.partner == partner


def test_different_items_of_one_name_are_refused():
    samples = []
    for folder in ("first", "second"):
        samples.append(Sample("p", f"{folder}/pairs-00000.tar", {"image": folder.encode()}, {}))
    stem = PretrainedStem(dim=0, channels=1)
    stem.network = torch.nn.Identity()
    adapter = SimpleNamespace(stem=stem)

    with pytest.raises(UserError, match=r"first/pairs-00000\.tar and second/pairs-00000\.tar"):
        StemViews("image", adapter, None, {}, samples, 1, CPU, False)


@pytest.mark.parametrize(
    ("views", "fields", "message"),
    [
        ({"image": 1}, {"freeze": []}, r"data\.stem_views\.image: .* add adapters\.image\.stem"),
        ({"text": 1}, {}, r"data\.stem_views\.text"),
        ({"image": 1}, {"run": {"parallel": "fsdp"}}, r"data\.stem_views .*=ddp"),
    ],
)
def test_mistakes_in_stem_views(root, tmp_path, views, fields, message):
    with pytest.raises(UserError, match=message):
        trainer.train(stem_recipe(root, tmp_path, views, **fields))
