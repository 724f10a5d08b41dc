"""The protocols, with an embedder whose vectors are known: right answers, wrong ones, equal ones."""

import io
import json
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from support.random_model import save_random_model

import onepeace
from onepeace.cli import main
from onepeace.embed.zero_shot import TEMPLATES, fill, prototypes, with_article
from onepeace.errors import UserError
from onepeace.evaluate import benchmarks
from onepeace.evaluate.rerank import dual_softmax
from onepeace.evaluate.retrieval import retrieval
from onepeace.evaluate.same_class import Labelled, same_class
from onepeace.evaluate.zero_shot import zero_shot

WORDS = ("dog", "cat", "acorn", "rain")


class KnownEmbedder:
    """A text or the bytes of a file mean the words that occur in them; `shift` makes it mistake each for the next."""

    def __init__(self, shift=0, modalities=("text", "image", "audio")):
        self.shift, self.modalities, self.seen = shift, modalities, []

    def encode_text(self, items):
        self.seen += items
        return self._encode(items, 0)

    def encode_image(self, items):
        return self._encode([item.decode() for item in items], self.shift)

    encode_audio = encode_image

    def _encode(self, items, shift):
        vectors = torch.zeros(len(items), len(WORDS))
        for row, item in zip(vectors, items, strict=True):
            for i, word in enumerate(WORDS):
                row[(i + shift) % len(WORDS)] += float(word in item)
        return torch.nn.functional.normalize(vectors, dim=1)


class EqualEmbedder(KnownEmbedder):
    def _encode(self, items, shift):
        return torch.ones(len(items), 4) / 2


def write_shard(path, samples, ending="png"):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        for key, (media, about) in samples.items():
            for name, data in ((f"{key}.{ending}", media), (f"{key}.json", json.dumps(about).encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def write_recipe(path, text):
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def root(tmp_path):
    """Three sets: two photographs with two captions each, four drawings of three names, four labelled sounds."""
    write_shard(
        tmp_path / "val/photos/a.tar.gz",
        {
            "1": (b"dog", {"captions": ["a dog", "the dog"]}),
            "2": (b"cat", {"captions": ["a cat", "one cat"]}),
        },
    )
    names = {"1": "dog", "2": "dog", "3": "cat", "4": "acorn"}
    drawings = {key: (name.encode(), {"captions": [name, f"{name}: a drawing"]}) for key, name in names.items()}
    write_shard(tmp_path / "val/drawings/a.tar.gz", drawings)
    sounds = {str(i): (word.encode(), {"captions": ["x"], "label": word}) for i, word in enumerate(WORDS)}
    write_shard(tmp_path / "val/sounds/a.tar.gz", sounds, "ogg")
    (tmp_path / "val/sounds/classes.json").write_text(json.dumps(WORDS))
    return tmp_path


RECIPE = """
sets:
  photos: {task: retrieval, modality: image, shards: "val/photos/*.tar.gz", at: [1]}
  drawings: {task: retrieval, modality: image, shards: "val/drawings/*.tar.gz", texts: names, at: [1, 10]}
  sounds:
    {task: zero_shot, modality: audio, shards: "val/sounds/*.tar.gz", classes: val/sounds/classes.json, at: [1, 3]}
"""


@pytest.fixture
def recipe(root):
    return benchmarks.read_recipe(write_recipe(root / "recipe.yaml", RECIPE), [f"data.root={root}"])


def values(rows):
    return {(row.set, row.metric): row.value for row in rows}


def test_a_perfect_embedder_is_right_everywhere(recipe):
    assert set(values(benchmarks.run(KnownEmbedder(), recipe)).values()) == {1.0}


def test_an_embedder_that_mistakes_everything_scores_worse(recipe):
    right, wrong = (values(benchmarks.run(KnownEmbedder(shift), recipe)) for shift in (0, 1))
    # only where k reaches all candidates is a wrong order as good
    assert {name for name in right if wrong[name] == right[name]} == {
        ("drawings", "text to image R@10"),
        ("drawings", "image to text R@10"),
    }
    assert wrong["photos", "text to image R@1"] == wrong["sounds", "top-1 of 4"] == 0


def test_an_embedder_that_finds_everything_equal_hits_nothing(recipe):
    got = values(benchmarks.run(EqualEmbedder(), recipe))
    assert all(value == 0 for (_, metric), value in got.items() if not metric.endswith("@10"))


def test_rows_carry_chance_and_counts(recipe):
    rows = {(row.set, row.metric): (row.chance, row.n) for row in benchmarks.run(KnownEmbedder(), recipe)}
    assert rows["photos", "text to image R@1"] == (pytest.approx(1 / 2), 4)
    assert rows["photos", "image to text R@1"] == (pytest.approx(1 / 2), 2)
    # dog has two of four drawings, the others one
    assert rows["drawings", "text to image R@1"] == (pytest.approx((2 + 1 + 1) / 12), 3)
    assert rows["drawings", "image to text R@1"] == (pytest.approx(1 / 3), 4)
    assert rows["sounds", "top-1 of 4"] == (pytest.approx(1 / 4), 4)
    assert rows["sounds", "top-3 of 4"] == (pytest.approx(3 / 4), 4)


def test_a_caption_belongs_to_its_own_item_but_a_name_to_every_item(root):
    samples = {"1": (b"dog", {"captions": ["a dog"]}), "2": (b"dog cat", {"captions": ["a dog"]})}
    write_shard(root / "val/photos/a.tar.gz", samples)
    path = write_recipe(root / "recipe.yaml", RECIPE)
    got = {}
    for rule in ("captions", "names"):
        recipe = benchmarks.read_recipe(path, [f"data.root={root}", f"sets.photos.texts={rule}"])
        (row,) = [r for r in benchmarks.run(KnownEmbedder(), recipe) if r[:2] == ("photos", "text to image R@1")]
        got[rule] = (row.value, row.n)
    assert got == {"captions": (0.5, 2), "names": (1.0, 1)}


def test_retrieval_scores_in_blocks_as_in_one(monkeypatch):
    class Random:
        def encode_text(self, items):
            return np.random.default_rng(len(items)).normal(size=(len(items), 3))

        encode_audio = encode_text

    def run():
        owner = [i // 2 for i in range(10)]
        return retrieval(
            Random(), "abcde", "abcdefghij", item_ids=range(5), text_ids=owner, modality="audio", at=[1, 2]
        )

    whole = run()
    monkeypatch.setattr("onepeace.evaluate.retrieval.BLOCK", 3)
    assert run() == whole
    assert 0 < sum(figure.value for figure in whole) < len(whole)


@pytest.mark.parametrize("block", [1, 3, 100])
def test_dual_softmax_equals_a_plain_loop(block):
    random = np.random.default_rng(0)
    queries, candidates, scale = random.normal(size=(5, 3)), random.normal(size=(7, 3)), 2.5
    similar = [[sum(a * b for a, b in zip(q, c, strict=True)) for c in candidates] for q in queries]
    want = [
        [
            value * math.exp(scale * value) / sum(math.exp(scale * similar[other][j]) for other in range(5))
            for j, value in enumerate(row)
        ]
        for row in similar
    ]
    got = dual_softmax(queries, candidates, scale, block)(np.array(similar))
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_dual_softmax_keeps_small_weights_apart():
    queries = np.array([[1, 0], [-1, 0]], dtype=np.float32)
    candidates = np.array([[-1, 0], [-0.9, 0]], dtype=np.float32)
    got = dual_softmax(queries, candidates, 100.0, 10)(queries @ candidates.T)
    assert got[0, 1] < got[0, 0] < 0  # weights of e^-180 and e^-200, both 0 in float32


class Hub:
    """Text 1 lies nearer to item 0 than to its own item, as everything does; item 0 has a text that lies nearer."""

    def encode_text(self, items):
        return np.array([[0.9, 0.1], [0.6, 0.5]])

    def encode_image(self, items):
        return np.eye(2)


def test_reranking_adds_figures_and_changes_no_other():
    def run(**options):
        return retrieval(Hub(), "ab", ["a", "b"], item_ids=[0, 1], text_ids=[0, 1], at=[1], **options)

    plain, both = run(), run(rerank=["dual_softmax"], rerank_scale=10.0)
    assert [figure.metric for figure in both] == [
        "text to image R@1",
        "text to image R@1 (dual softmax)",
        "image to text R@1",
        "image to text R@1 (dual softmax)",
    ]
    assert both[::2] == plain
    assert [figure[1:] for figure in both[:2]] == [(0.5, 0.5, 2), (1.0, 0.5, 2)]
    # at a scale near 0 all weights are equal, and the order is the plain one
    assert [figure.value for figure in run(rerank=["dual_softmax"], rerank_scale=1e-9)[:2]] == [0.5, 0.5]


def test_a_recipe_sets_the_scale_of_reranking(root):
    write_shard(root / "val/photos/a.tar.gz", {key: (b"x", {"captions": [key]}) for key in "ab"})
    path, got = write_recipe(root / "recipe.yaml", RECIPE), []
    for scale in ([], ["sets.photos.rerank_scale=1e-9"]):
        overrides = [f"data.root={root}", "sets.photos.rerank=[dual_softmax]", *scale]
        photos = benchmarks.read_recipe(path, overrides).sets["photos"]
        got.append(values(benchmarks.measure(Hub(), "photos", photos, root)))
    assert [rows["photos", "text to image R@1 (dual softmax)"] for rows in got] == [1.0, 0.5]


def test_same_class_equals_a_plain_loop():
    class Random:
        def encode_audio(self, items):
            return np.random.default_rng(1).normal(size=(len(items), 3)).round(1)

        def encode_image(self, items):
            return np.random.default_rng(2).normal(size=(len(items), 3)).round(1)

    sounds = Labelled("audio", range(9), ["dog", "horn", "motor", "rain", "dog", "horn", "motor", "motor", "dog"])
    pictures = Labelled(
        "image", range(11), ["pug", "car", "tree", "bus", "car", "terrier", *["tree"] * 3, "pug", "bus"]
    )
    matches = {"dog": ("pug", "terrier"), "horn": ("car",), "motor": ("car", "bus")}
    pairs = {(a, b) for a, partners in matches.items() for b in partners}
    forth = Random().encode_audio(sounds.items) @ Random().encode_image(pictures.items).T
    want = []
    for name, scores, queries, candidates, right in (
        ("audio to image", forth, sounds.labels, pictures.labels, pairs),
        ("image to audio", forth.T, pictures.labels, sounds.labels, {(b, a) for a, b in pairs}),
    ):
        for k in (1, 4):
            shares, chances = [], []
            for row, query in zip(scores, queries, strict=True):
                hits = [(query, candidate) in right for candidate in candidates]
                if any(hits):
                    first = sorted(range(len(row)), key=lambda j, row=row, hits=hits: (-row[j], hits[j]))[:k]
                    shares.append(sum(hits[j] for j in first) / k)
                    chances.append(sum(hits) / len(hits))
            assert 0 < sum(shares) < len(shares)
            want.append((f"{name} precision@{k}", np.mean(shares), np.mean(chances), len(shares)))
    got = same_class(Random(), sounds, pictures, matches, at=[1, 4])
    assert [figure[::3] for figure in got] == [figure[::3] for figure in want]
    assert [figure[1:3] for figure in got] == [pytest.approx(figure[1:3]) for figure in want]


def test_prototype_is_the_normalised_mean_over_templates():
    def encode_text(items):
        angle = torch.tensor([len(item) / 10.0 for item in items])
        return torch.stack([angle.cos(), angle.sin()], dim=1)

    got = prototypes(encode_text, ["ox", "goat"], ["{}", "one {}"])
    for row, lengths in zip(got, ((2, 6), (4, 8)), strict=True):
        mean = np.mean([[np.cos(n / 10), np.sin(n / 10)] for n in lengths], axis=0)
        assert row.numpy() == pytest.approx(mean / np.linalg.norm(mean))


@pytest.mark.parametrize("modality", sorted(TEMPLATES))
def test_zero_shot_uses_the_templates_of_the_modality(modality):
    embedder = KnownEmbedder()
    zero_shot(embedder, [b"dog"], [0], WORDS, modality=modality)
    assert embedder.seen == [fill(template, word) for word in WORDS for template in TEMPLATES[modality]]
    own = KnownEmbedder()
    zero_shot(own, [b"dog"], [0], WORDS, modality=modality, templates=["hear {a}"])
    assert own.seen == ["hear a dog", "hear a cat", "hear an acorn", "hear a rain"]


def test_names_get_an_article_unless_plural():
    given = ["acorn", "Persian cat", "sunglasses", "bus", "Albatross", "brass", "iris"]
    want = ["an acorn", "a Persian cat", "sunglasses", "a bus", "an Albatross", "a brass", "an iris"]
    assert [with_article(name) for name in given] == want


def test_an_embedder_of_the_wrong_shape_is_an_error():
    class Short(KnownEmbedder):
        def encode_image(self, items):
            return super().encode_image(items)[:1]

    with pytest.raises(ValueError, match=r"encode_image returned \(1, 4\) for 2 items"):
        retrieval(Short(), [b"dog", b"cat"], ["dog"], item_ids=[0, 1], text_ids=[0])


def test_sets_of_a_modality_the_model_lacks_are_left_out(recipe, caplog):
    rows = benchmarks.run(KnownEmbedder(modalities=("text", "image")), recipe)
    assert {row.set for row in rows} == {"photos", "drawings"}
    assert "sounds: left out, the model has no audio" in caplog.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sets.photos.task=captioning", "task is 'captioning'; known: zero_shot, retrieval, same_class"),
        ("sets.photos.texts=titles", "texts is 'titles'; known: captions, names"),
        ("sets.photos.shard=x", "sets.photos.shard is not a field; did you mean sets.photos.shards"),
        ("sets.photos.at=[0]", "every k is at least 1"),
        ("sets.sounds.templates=[the sound]", "'the sound' has no {}"),
        ("sets.sounds.modality=depth", "no default templates for depth"),
        ("sets.photos.rerank=[softmax]", "rerank has 'softmax'; known: dual_softmax"),
        ("sets.photos.rerank_scale=0", "rerank_scale is 0.0; it is above 0"),
        ("sets.photos.rerank_scale=.nan", "rerank_scale is nan; it is above 0"),
        ("sets.sounds.rerank=[dual_softmax]", "rerank is for retrieval, not for zero_shot"),
        ("sets.photos.matches={dog: [pug]}", "other and matches are for same_class, not for retrieval"),
        ("sets.photos", "is not an override"),
        ("sets.photos=[", "not YAML"),
    ],
)
def test_a_mistake_in_a_recipe_is_named(root, override, message):
    path = write_recipe(root / "recipe.yaml", RECIPE)
    with pytest.raises(UserError) as error:
        benchmarks.read_recipe(path, [override])
    assert message in str(error.value)


def test_an_unset_data_variable_says_what_to_do(root, monkeypatch):
    recipe = benchmarks.read_recipe(write_recipe(root / "recipe.yaml", RECIPE))
    monkeypatch.delenv("ONEPEACE_DATA", raising=False)
    with pytest.raises(UserError, match=r"ONEPEACE_DATA.*not set.*--data FOLDER"):
        benchmarks.run(KnownEmbedder(), recipe)
    monkeypatch.setenv("ONEPEACE_DATA", str(root / "nowhere"))
    with pytest.raises(UserError, match="nowhere is not a folder"):
        benchmarks.run(KnownEmbedder(), recipe)
    monkeypatch.setenv("ONEPEACE_DATA", str(root))
    assert benchmarks.run(KnownEmbedder(), recipe)


SAME_CLASS = """
sets:
  both:
    task: same_class
    modality: audio
    shards: "val/sounds/*.tar.gz"
    other: {modality: image, shards: "val/pictures/*.tar.gz"}
    at: [2]
    matches: {dog: [pug, terrier], cat: [tabby]}
"""


@pytest.fixture
def pictures(root):
    """Beside the four labelled sounds: two dogs of two breeds, a cat, and an acorn no sound is matched with."""
    labels = {"pug": b"dog", "terrier": b"dog", "tabby": b"cat", "acorn": b"acorn"}
    samples = {label: (media, {"captions": ["x"], "label": label}) for label, media in labels.items()}
    write_shard(root / "val/pictures/a.tar.gz", samples)
    return samples


def same_class_recipe(root, *overrides):
    return benchmarks.read_recipe(write_recipe(root / "same.yaml", SAME_CLASS), [f"data.root={root}", *overrides])


def test_same_class_asks_for_matched_items_among_all(root, pictures):
    rows = benchmarks.run(KnownEmbedder(), same_class_recipe(root))
    assert [row[:2] for row in rows] == [("both", "audio to image precision@2"), ("both", "image to audio precision@2")]
    # the dog's sound finds two dogs, the cat's one cat; each picture has one sound among four
    assert [row.value for row in rows] == [pytest.approx((1 + 1 / 2) / 2), pytest.approx(1 / 2)]
    assert [row.chance for row in rows] == [pytest.approx((2 / 4 + 1 / 4) / 2), pytest.approx(1 / 4)]
    assert [row.n for row in rows] == [2, 3]
    assert [row.ratio for row in rows] == [pytest.approx(2), pytest.approx(2)]


def test_same_class_counts_ties_against_the_model(root, pictures):
    equal, best = (benchmarks.run(e, same_class_recipe(root)) for e in (EqualEmbedder(), KnownEmbedder()))
    assert [row.value for row in equal] == [0, 0]
    assert all(row.value > 0 for row in best)


def test_same_class_defaults_to_ten(root, pictures):
    rows = benchmarks.run(KnownEmbedder(), same_class_recipe(root, "sets.both.at=[]"))
    assert [row.metric for row in rows] == ["audio to image precision@10", "image to audio precision@10"]


@pytest.mark.parametrize("lacks", ["image", "audio"])
def test_same_class_needs_both_modalities(root, pictures, caplog, lacks):
    has = {"text", "image", "audio"} - {lacks}
    assert benchmarks.run(KnownEmbedder(modalities=has), same_class_recipe(root)) == []
    assert f"both: left out, the model has no {lacks}" in caplog.text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sets.both.matches.bird=[pug]", r"set both: matches names 'bird', which is no label in val/sounds"),
        ("sets.both.matches.cat=[tiger]", r"set both: matches names 'tiger', which is no label in val/pictures"),
    ],
)
def test_a_match_of_no_item_is_named(root, pictures, override, message):
    with pytest.raises(UserError, match=message):
        benchmarks.run(KnownEmbedder(), same_class_recipe(root, override))


def test_a_picture_without_label_is_named(root, pictures):
    write_shard(root / "val/pictures/a.tar.gz", {**pictures, "7": (b"dog", {"captions": ["a dog"]})})
    with pytest.raises(UserError, match=r"set both: .*a\.tar\.gz: 7 has no label"):
        benchmarks.run(KnownEmbedder(), same_class_recipe(root))


@pytest.mark.parametrize("override", ["sets.both.other=null", "sets.both.matches={}", "sets.both.matches.cat=[]"])
def test_same_class_without_its_fields_is_an_error(root, override):
    with pytest.raises(UserError, match=r"same_class needs other: .* and matches: "):
        same_class_recipe(root, override)


def test_a_label_outside_the_classes_names_shard_and_key(root, recipe):
    (root / "val/sounds/classes.json").write_text(json.dumps([{"name": "dog"}, {"name": "cat"}, {"name": "acorn"}]))
    with pytest.raises(UserError, match=r"set sounds: .*a\.tar\.gz: 3: label 'rain' is not in val/sounds/classes"):
        benchmarks.run(KnownEmbedder(), recipe)


def test_a_sample_without_label_is_named(root, recipe):
    write_shard(root / "val/sounds/a.tar.gz", {"7": (b"dog", {"captions": ["a dog"]})}, "ogg")
    with pytest.raises(UserError, match=r"set sounds: .*a\.tar\.gz: 7 has no label"):
        benchmarks.run(KnownEmbedder(), recipe)


@pytest.mark.parametrize("content", ['["dog", "dog"]', "[]", "{", "[{}]", "3"])
def test_a_strange_class_file_is_named(root, recipe, content):
    (root / "val/sounds/classes.json").write_text(content)
    with pytest.raises(UserError, match=r"set sounds: .*classes\.json: "):
        benchmarks.run(KnownEmbedder(), recipe)


def test_classes_default_to_the_labels_of_the_shards(root):
    path = write_recipe(root / "recipe.yaml", RECIPE)
    recipe = benchmarks.read_recipe(path, [f"data.root={root}", "sets.sounds.classes=null"])
    assert values(benchmarks.run(KnownEmbedder(), recipe))["sounds", "top-1 of 4"] == 1


def test_command_prints_a_table(root, monkeypatch, capsys):
    monkeypatch.setitem(vars(onepeace), "load", lambda name, device=None: KnownEmbedder())
    path = write_recipe(root / "recipe.yaml", RECIPE)
    overrides = ["sets.photos.at=[1, 2]", "sets.photos.rerank=[dual_softmax]"]
    assert main(["evaluate", str(path), *overrides, "--data", str(root)]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["set", "metric", "value", "chance", "ratio", "n", "seconds"]
    assert lines[0].split()[:9] == ["photos", "text", "to", "image", "R@1", "100.0%", "50.0%", "2.0", "4"]
    assert lines[2].split()[:8] == ["photos", "text", "to", "image", "R@1", "(dual", "softmax)", "100.0%"]
    assert len(lines) == 8 + 4 + 2


def test_command_prints_same_class(root, pictures, monkeypatch, capsys):
    monkeypatch.setitem(vars(onepeace), "load", lambda name, device=None: KnownEmbedder())
    path = write_recipe(root / "same.yaml", SAME_CLASS)
    assert main(["evaluate", str(path), "--data", str(root), "--json"]) == 0
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["metric"], first["value"], first["ratio"]) == ("audio to image precision@2", 0.75, 2.0)
    assert (second["metric"], second["n"]) == ("image to audio precision@2", 3)


def test_command_measures_the_other_sets_when_one_fails(root, monkeypatch, capsys):
    monkeypatch.setitem(vars(onepeace), "load", lambda name, device=None: KnownEmbedder())
    path = write_recipe(root / "recipe.yaml", RECIPE)
    (root / "val/photos/a.tar.gz").unlink()
    assert main(["evaluate", str(path), "--data", str(root), "--json", "--model", "some"]) == 1
    out, err = capsys.readouterr()
    rows = [json.loads(line) for line in out.splitlines()]
    assert {row["set"] for row in rows} == {"drawings", "sounds"}
    assert set(rows[0]) == {"model", "set", "metric", "value", "chance", "ratio", "n", "seconds"}
    assert "set photos: " in err
    assert "Traceback" not in err


def test_command_measures_a_model_folder_on_real_files(tmp_path, samples, capsys):
    names = ("dog", "cat", "bus")
    about = {name: {"captions": [f"a {name}"], "label": name} for name in names}
    pictures = {name: ((samples / f"images/{name}.jpg").read_bytes(), about[name]) for name in names}
    sounds = {name: ((samples / f"sounds/{name}.ogg").read_bytes(), about[name]) for name in names[:2]}
    write_shard(tmp_path / "val/pictures/a.tar.gz", pictures, "jpg")
    write_shard(tmp_path / "val/sounds/a.tar.gz", sounds, "ogg")
    recipe = """
sets:
  pictures: {task: retrieval, modality: image, shards: "val/pictures/*.tar.gz", at: [1, 3]}
  sounds: {task: zero_shot, modality: audio, shards: "val/sounds/*.tar.gz", at: [2]}
"""
    path, model = write_recipe(tmp_path / "recipe.yaml", recipe), save_random_model(tmp_path / "model")
    arguments = ["evaluate", str(path), "--data", str(tmp_path), "--model", str(model), "--device", "cpu", "--json"]
    assert main(arguments) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["metric"], row["n"]) for row in rows] == [
        *(("text to image R@1", 3), ("text to image R@3", 3), ("image to text R@1", 3), ("image to text R@3", 3)),
        ("top-2 of 2", 2),
    ]
    assert [row["value"] for row in rows[1::2]] == [1.0, 1.0]

    pictures["cat"] = (b"no picture", about["cat"])
    write_shard(tmp_path / "val/pictures/a.tar.gz", pictures, "jpg")
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert [json.loads(line)["set"] for line in out.splitlines()] == ["sounds"]
    assert "set pictures: " in err


SHIPPED = Path(__file__).parents[2] / "recipes" / "evaluate" / "tiny.yaml"


def test_shipped_matches_name_classes_of_esc50_and_distinct_pictures():
    matches = benchmarks.read_recipe(SHIPPED).sets["esc50_tiny_imagenet"].matches
    sounds = json.loads((SHIPPED.parents[2] / "data" / "esc50" / "captions.json").read_text(encoding="utf-8"))
    assert set(matches) <= set(sounds)
    assert all(len(set(partners)) == len(partners) for partners in matches.values())


def test_shipped_recipe_covers_the_held_out_sets(shared):
    recipe = benchmarks.read_recipe(SHIPPED, [f"data.root={shared / 'data'}"])

    class ByLength(EqualEmbedder):
        encode_image = encode_audio = lambda self, items: self._encode(items, 0)

    rows = benchmarks.run(ByLength(), recipe)
    counts = {(row.set, row.metric.rpartition(" R@")[0] or row.metric): row.n for row in rows}
    assert counts == {
        ("tiny_imagenet", "top-1 of 202"): 2424,
        ("tiny_imagenet", "top-5 of 202"): 2424,
        ("flickr8k", "text to image"): 5000,
        ("flickr8k", "image to text"): 1000,
        ("emoji", "text to image"): 275,
        ("emoji", "image to text"): 821,
        ("openclipart", "text to image"): 187,
        ("openclipart", "image to text"): 187,
        ("esc50_fold5", "top-1 of 50"): 400,
        ("esc50_fold5", "top-5 of 50"): 400,
        ("esc50_tiny_imagenet", "audio to image precision@10"): 15 * 8,
        ("esc50_tiny_imagenet", "image to audio precision@10"): 31 * 12,
    }
    reranked = [row for row in rows if row.metric.endswith("(dual softmax)")]
    assert {row.set for row in reranked} == {"flickr8k", "emoji", "openclipart"}
    assert len(reranked) == 3 * 2 * 3
