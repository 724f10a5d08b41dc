"""Out of an index and into another: nothing is lost, and vectors without a model are known as such."""

import json
import os

import numpy as np
import pytest
import soundfile
from support.indexes import content
from support.two_towers import labelled, pairs

from onepeace.cli import main
from onepeace.errors import UsageError, UserError
from onepeace.files.embeddings import read_embeddings
from onepeace.index.exchange import calibrate, export, import_vectors
from onepeace.index.fitting import fit
from onepeace.index.index import Index
from onepeace.index.query import Part


@pytest.fixture
def index(build, tmp_path, samples):
    """Of a picture, a described one, a long sound, a text and a file that is none."""
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("cat", "dog"):
        (folder / f"{name}.jpg").write_bytes((samples / "images" / f"{name}.jpg").read_bytes())
    soundfile.write(folder / "long.wav", np.random.default_rng(0).normal(0, 0.1, 16000 * 5), 16000)
    (folder / "words.txt").write_text("words")
    (folder / "broken.jpg").write_bytes(b"nothing")
    (tmp_path / "table.csv").write_text("image,caption,year\nfiles/dog.jpg,a dog,2001\n")
    build(tmp_path / "index", folder, tmp_path / "table.csv")
    return tmp_path / "index"


@pytest.mark.parametrize("name", ["v.npz", "v.safetensors", "v.parquet", "folder"])
def test_nothing_is_lost_on_the_way(index, tmp_path, name):
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    with Index.open(index) as opened:
        assert export(opened, tmp_path / name) == 3 + 3
    assert import_vectors(tmp_path / "other", tmp_path / name, "siglip2") == (4, 6)
    expected, found = content(index), content(tmp_path / "other")
    assert expected.pop(str(tmp_path / "files" / "broken.jpg"))[0][7] is not None
    assert {path: about for path, (about, _) in found.items()} == {path: about for path, (about, _) in expected.items()}
    for path, (_, vectors) in found.items():
        np.testing.assert_allclose(vectors, expected[path][1], atol=1e-6)
    with Index.open(tmp_path / "other") as opened:
        assert (len(opened), opened.model, opened.embed_dim) == (4, "siglip2", 16)


def test_folder_lists_what_has_no_vector(index, tmp_path):
    with Index.open(index) as opened:
        export(opened, tmp_path / "folder")
        with pytest.raises(UsageError, match=r"unknown ending '.csv'; known: .npz"):
            export(opened, tmp_path / "v.csv")
    *_, last = (tmp_path / "folder" / "manifest.jsonl").read_text().splitlines()
    assert json.loads(last)["path"] == str(tmp_path / "files" / "broken.jpg")
    assert "not a picture" in json.loads(last)["problem"]


def save(path, vectors, paths, **more):
    np.savez(path, vectors=np.asarray(vectors, np.float32), paths=np.array(paths), **more)
    return path


def test_foreign_vectors_get_unit_length_and_what_is_known_of_their_files(tmp_path, samples):
    root = samples / "images"
    source = save(tmp_path / "v.npz", [[3, 4], [0, 2], [1, 0]], ["dog.jpg", "gone.ogg", "dog.jpg"])
    assert import_vectors(tmp_path / "index", source, "clap", root) == (2, 3)
    found = content(tmp_path / "index")
    assert sorted(found) == [str(root / "dog.jpg"), str(root / "gone.ogg")]
    about, vectors = found[str(root / "dog.jpg")]
    np.testing.assert_allclose(vectors, [[0.6, 0.8], [1, 0]], atol=1e-6)
    assert about[:2] == ("image", os.path.getsize(root / "dog.jpg"))
    # Again with others: they take the place of those.
    save(tmp_path / "v.npz", [[0, 1]], ["dog.jpg"])
    import_vectors(tmp_path / "index", source, "clap", root)
    np.testing.assert_allclose(content(tmp_path / "index")[str(root / "dog.jpg")][1], [[0, 1]])


@pytest.mark.parametrize(
    ("vectors", "paths", "message"),
    [
        ([[1, 0], [0, 0]], ["a.jpg", "b.jpg"], "the vector of b.jpg is all zeros"),
        ([[1, 0], [np.nan, 0]], ["a.jpg", "b.jpg"], "the vector of b.jpg is NaN"),
        ([[np.inf, 0]], ["a.jpg"], "the vector of a.jpg is NaN or infinite"),
        ([[1, 0]], ["a.bin"], "a.bin is of no known kind; known: image"),
        (np.empty((0, 2)), np.empty(0, "U1"), "no vectors in it"),
    ],
)
def test_what_cannot_be_compared_makes_no_index(tmp_path, vectors, paths, message):
    with pytest.raises(UserError, match=message):
        import_vectors(tmp_path / "index", save(tmp_path / "v.npz", vectors, paths), "clap")
    assert not (tmp_path / "index").exists()


def test_one_index_holds_vectors_of_one_model(build, update, index, tmp_path):
    two, three = ([[1] + [0] * (width - 1)] for width in (2, 3))
    source = save(tmp_path / "v.npz", two, ["a.jpg"])
    import_vectors(tmp_path / "other", source, "clap")
    with pytest.raises(UserError, match="an index of imported vectors of clap; those of siglip2 need an index"):
        import_vectors(tmp_path / "other", source, "siglip2")
    with pytest.raises(UserError, match=r"an index of vectors made here of .*; those of clap need an index"):
        import_vectors(index, source, "clap")
    with pytest.raises(UserError, match="vectors of 2 numbers, not 3"):
        import_vectors(tmp_path / "other", save(tmp_path / "w.npz", three, ["a.jpg"]), "clap")
    cannot = "holds vectors of clap that were imported, and onepeace cannot run that model; search with --like"
    for attempt in (lambda: build(tmp_path / "other", tmp_path / "files"), lambda: update(tmp_path / "other")):
        with pytest.raises(UserError, match=cannot):
            attempt()


def test_imported_vectors_are_searched_by_their_likes_and_by_vectors(tmp_path):
    source = save(tmp_path / "v.npz", [[1, 0], [0.8, 0.6], [0, 1]], ["/a/one.jpg", "/a/two.jpg", "/a/three.ogg"])
    import_vectors(tmp_path / "index", source, "clap")
    with Index.open(tmp_path / "index") as index:
        for part in (Part("like", "/a/one.jpg"), Part("vector", [2.0, 0.1], modality="image")):
            hits = index.search([part]).hits
            assert [hit.item.path for hit in hits][-2:] == ["/a/two.jpg", "/a/three.ogg"]
        assert hits[0].score == pytest.approx(2 / np.hypot(2, 0.1), abs=1e-5)
        for part in (Part("text", "words"), Part("image", tmp_path / "x.jpg")):
            with pytest.raises(UserError, match="holds vectors of clap that were imported, and onepeace cannot run"):
                index.search([part])


def two_towers(folder, calibrated=True):
    """An index of imported pictures and sounds; the file of the texts that mean them, and their own paths."""
    pictures, sounds = pairs("image", 60, 7), pairs("audio", 60, 8)
    paths = [f"/a/{i}.jpg" for i in range(60)] + [f"/a/{i}.ogg" for i in range(60)]
    import_vectors(folder / "towers", save(folder / "v.npz", [*pictures[1], *sounds[1]], paths), "towers")
    words = [f"picture {i}" for i in range(60)] + [f"sound {i}" for i in range(60)]
    texts = save(folder / "words.npz", [*pictures[0], *sounds[0]], words, modalities=np.array(["text"] * 120))
    if calibrated:
        found = labelled()
        about, rows, names = [], [], []
        for modality, own in found.items():
            for vector, group in zip(own.vectors, own.groups.tolist(), strict=True):
                names.append(f"caption {group}" if modality == "text" else f"/b/{modality} {group}")
                rows.append(vector)
                about.append({"path": names[-1], "modality": modality, "caption": f"Caption {group}"})
        manifest = np.frombuffer("\n".join(map(json.dumps, about)).encode(), np.uint8)
        kinds = np.array([one["modality"] for one in about])
        save(folder / "pairs.npz", rows, names, modalities=kinds, manifest=manifest)
    return folder / "towers", texts, paths


def test_imported_vectors_are_calibrated_like_ours(tmp_path):
    index, texts, paths = two_towers(tmp_path)
    found = calibrate(index, tmp_path / "pairs.npz", prior=0.01)
    expected = fit(labelled(), prior=0.01, model="imported", about={}).calibration
    assert found.platt.keys() == expected.platt.keys() >= {("text", "image"), ("text", "audio")}
    words = read_embeddings(texts)
    with Index.open(index) as opened:
        right = []
        for row in range(0, 120, 10):
            hits = opened.search([Part("vector", words.vectors[row])]).hits
            right.append(hits[0].item.path == paths[row])
            assert 0 < hits[0].match < 1
    assert sum(right) >= 10
    with pytest.raises(UserError, match=r"vectors of 2 numbers, those of .* have 32"):
        calibrate(index, save(tmp_path / "narrow.npz", [[1, 0]], ["a.jpg"]), prior=0.01)


def test_models_that_run_here_are_calibrated_themselves(index, tmp_path):
    with pytest.raises(UsageError, match=r"is of .*; calibrate that: onepeace calibrate .* SOURCE"):
        calibrate(index, save(tmp_path / "v.npz", [[1, 0]], ["a.jpg"]), prior=0.01)
    assert not (index / "calibration.safetensors").exists()


def test_two_models_are_compared_on_the_same_files(index, tmp_path, capsys):
    """One that runs here, and one whose vectors were imported: `search --compare`."""
    towers, texts, _ = two_towers(tmp_path, calibrated=False)
    dog, cat = (str(tmp_path / "files" / f"{name}.jpg") for name in ("dog", "cat"))
    vectors = np.zeros((3, 32), np.float32)
    vectors[:, 0], vectors[2, 1] = 1, 0.3
    import_vectors(towers, save(tmp_path / "more.npz", vectors, [dog, "/a/like a dog.jpg", cat]), "towers")
    options = [str(index), "--compare", str(towers), "--top", "2"]
    assert main(["search", *options, "--image", dog, "--only", "image"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[0] == "1 of 2 hits in both"
    assert "towers" in out.splitlines()[1]
    assert "like a dog.jpg" in out
    options += ["--only", "audio"]
    assert main(["search", *options, "--text", "sound 5", "--vectors", str(texts), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    theirs = [line["path"] for line in lines if line["index"] == "towers"]
    assert len(theirs) == 2 < len(lines)
    assert theirs[0] == "/a/5.ogg"
    assert main(["search", *options, "--text", "a sound"]) == 1
    assert "with --vectors of words" in capsys.readouterr().err
