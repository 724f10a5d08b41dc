"""Files in groups: copies of one another and no others, clusters with the nearest words, and points of a plane."""

import io
import os
from itertools import combinations

import numpy as np
import pytest
import soundfile
from PIL import Image
from support.indexes import fabricate

from onepeace.errors import UserError
from onepeace.index import Index, Item, copies, groups
from onepeace.index.banks import Banks
from onepeace.index.groups import clusters, duplicates, plane, unit


def item(path, kind, **about):
    """A file as it is now."""
    status = os.stat(path)
    return Item(str(path), kind, status.st_size, status.st_mtime_ns, **about)


def found(folder, **options):
    """The names of each group."""
    with Index.open(folder) as index:
        made = duplicates(index, **options)
    return [[os.path.basename(copy.item.path) for copy in group.members] for group in made]


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def test_changed_pictures_are_copies(samples):
    with Image.open(samples / "images" / "dog.jpg") as image:
        dog = image.convert("RGB")
    width, height = dog.size
    place = (width // 2, height // 2, width // 2 + width // 8, height // 2 + height // 8)
    marked, darkened = dog.copy(), dog.copy()
    marked.paste((255, 255, 255), place)
    darkened.paste(Image.eval(dog.crop(place), lambda level: max(0, level - 24)), place)
    versions = {
        "itself": (dog, True),
        "half the size": (dog.resize((width // 2, height // 2)), True),
        "cut at the left and at the top": (dog.crop((width // 20, height // 20, width, height)), True),
        "cut, and as large as before": (dog.crop((0, 0, width - width // 20, height)).resize(dog.size), True),
        "few colours": (dog.quantize(64).convert("RGB"), True),
        "a mark in it": (marked, False),
        "a faint mark in it": (darkened, False),
        "mirrored": (dog.transpose(Image.Transpose.FLIP_LEFT_RIGHT), False),
        "negative": (Image.eval(dog, lambda level: 255 - level), False),
    }
    original = copies.picture(samples / "images" / "dog.jpg")
    looks = [copies.picture(saved(image, "JPEG", quality=60)) for image, _ in versions.values()]
    for said in (
        copies.same_pictures([original] * len(looks), looks),
        copies.same_pictures(looks, [original] * len(looks)),
    ):
        assert dict(zip(versions, said.tolist(), strict=True)) == {name: same for name, (_, same) in versions.items()}
    white = copies.picture(saved(Image.new("RGB", (90, 80), "white"), "PNG"))
    assert not copies.same_pictures([white], [white])[0]  # two empty pages


def test_changed_sounds_are_copies(samples, tmp_path):
    sound, rate = soundfile.read(samples / "sounds" / "rain.ogg")
    noise = np.random.default_rng(0).normal(size=len(sound))
    likewise = np.fft.irfft(np.abs(np.fft.rfft(sound)) * np.exp(2j * np.pi * noise[: len(sound) // 2 + 1]), len(sound))
    versions = {
        "quieter": (0.1 * sound, rate, True),
        "cut at the start": (sound[rate // 4 :], rate, True),
        "half the rate": (np.convolve(sound, np.ones(4) / 4, "same")[::2], rate // 2, True),
        "half of it": (sound[: len(sound) // 2], rate, False),
        "backwards": (sound[::-1], rate, False),
        "of the same spectrum": (likewise, rate, False),
        "higher notes twice as loud": (np.diff(sound, 2), rate, False),
    }
    original = copies.sound(samples / "sounds" / "rain.ogg")
    said = {}
    for name, (samples_of, its_rate, _) in versions.items():
        soundfile.write(tmp_path / "sound.ogg", samples_of, its_rate)
        said[name] = bool(copies.same_sounds([original], [copies.sound(tmp_path / "sound.ogg")])[0])
    assert said == {name: same for name, (_, _, same) in versions.items()}
    soundfile.write(tmp_path / "silence.wav", np.zeros(rate), rate)
    with pytest.raises(UserError, match="silence"):
        copies.sound(tmp_path / "silence.wav")


@pytest.mark.parametrize(("seconds", "cut"), [(90, 4), (8.4, 0.4), (34, 2)])  # also where fewer samples are a frame
def test_long_sounds_have_few_numbers_and_cuts_of_them_are_copies(tmp_path, seconds, cut):
    generator = np.random.default_rng(0)
    loudness = np.repeat(generator.uniform(0.01, 0.3, 60), round(seconds * 8000 / 60))
    sound = generator.normal(size=len(loudness)) * loudness
    looks = []
    for part in (sound, sound[round(cut * 8000) :], sound[::-1]):
        soundfile.write(tmp_path / "sound.wav", part, 8000)
        looks.append(copies.sound(tmp_path / "sound.wav"))
    assert max(len(look) for look in looks) <= copies.FRAMES
    assert copies.same_sounds([looks[0]] * 2, looks[1:]).tolist() == [True, False]
    assert copies.same_sounds(looks[1:], [looks[0]] * 2).tolist() == [True, False]


def test_different_files_are_no_copies(samples):
    for kind, folder in (("image", "images"), ("audio", "sounds")):
        look, same = copies.LOOKS[kind]
        pairs = list(combinations([look(path) for path in sorted((samples / folder).iterdir())], 2))
        assert not same([one for one, _ in pairs], [two for _, two in pairs]).any()


def test_scaled_videos_are_copies(samples, tmp_path):
    av = pytest.importorskip("av")

    def video(names, size, crf):
        path = tmp_path / "video.mp4"
        with av.open(path, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=5, options={"crf": crf})
            stream.width = stream.height = size
            for name in names:
                with Image.open(samples / "images" / f"{name}.jpg") as image:
                    frame = av.VideoFrame.from_image(image.convert("RGB").resize((size, size)))
                for _ in range(10):
                    container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return copies.video(path)

    one, two = ("dog", "cat", "bus", "sea"), ("dog", "bird", "owl", "sea")
    looks = [video(one, 128, "20"), video(one, 64, "30"), video(two, 128, "20")]
    assert copies.same_videos([looks[0]] * 2, looks[1:]).tolist() == [True, False]


def test_copies_of_an_index_are_found_with_the_best_first(tmp_path, samples, caplog):
    files = tmp_path / "files"
    files.mkdir()
    for name in ("images/dog.jpg", "images/cat.jpg", "sounds/dog.ogg", "sounds/sea.ogg"):
        (files / os.path.basename(name)).write_bytes((samples / name).read_bytes())
    with Image.open(files / "dog.jpg") as image:
        image.resize((image.width // 2, image.height // 2)).save(files / "small.png")
        large = image.width
    sound, rate = soundfile.read(files / "dog.ogg")
    soundfile.write(files / "long.wav", sound, rate)
    (files / "gone.jpg").write_bytes((files / "cat.jpg").read_bytes())
    made = [
        (item(files / "small.png", "image", width=large // 2, height=9), [1, 0]),
        (item(files / "dog.jpg", "image", width=large, height=9), [1, 0.1]),
        (item(files / "cat.jpg", "image", width=9, height=9, hash=b"1" * 16), [1, 0.2]),
        (item(files / "gone.jpg", "image", width=9, height=9), [1, 0.2]),
        (item(files / "dog.ogg", "audio", duration=5.0), [1, 0]),
        (item(files / "long.wav", "audio", duration=5.1), [1, 0]),
        (item(files / "sea.ogg", "audio"), [1, 0]),
    ]
    (files / "gone.jpg").unlink()
    for name in ("a", "b"):
        (files / f"{name}.txt").write_text("words")
        made.append((item(files / f"{name}.txt", "text", hash=b"2" * 16), [1, 0]))
    made.append((Item("/elsewhere/cat.jpg", "image", 5, hash=b"1" * 16), [0, 1]))
    index = fabricate(tmp_path / "index", made)
    assert sorted(found(index)) == [
        ["a.txt", "b.txt"], ["cat.jpg", "cat.jpg"], ["dog.jpg", "small.png"], ["long.wav", "dog.ogg"],
    ]  # fmt: skip
    assert f"{files / 'gone.jpg'} could not be compared" in caplog.text
    assert sorted(found(index, exact=True)) == [["a.txt", "b.txt"], ["cat.jpg", "cat.jpg"]]
    with Index.open(index) as opened:
        made = {group.members[1].item.path: group for group in duplicates(opened)}
    surpluses = [group.surplus for group in made.values()]
    assert surpluses == sorted(surpluses, reverse=True)
    group = made[str(files / "small.png")]
    assert group.surplus == (files / "small.png").stat().st_size
    assert group.members[1].similarity == pytest.approx(1 / np.hypot(1, 0.1))
    assert [copy.is_exact for copy in group.members] == [True, False]


def test_links_are_no_copies_of_their_file(tmp_path):
    real, copy = tmp_path / "z.jpg", tmp_path / "zz.jpg"
    real.write_bytes(b"picture")
    (tmp_path / "a.jpg").symlink_to(real)
    (tmp_path / "b.jpg").hardlink_to(real)
    one = [(item(tmp_path / name, "image", hash=b"1" * 16), [1, 0]) for name in ("a.jpg", "z.jpg", "b.jpg")]
    assert found(fabricate(tmp_path / "links", one), exact=True) == []
    assert found(fabricate(tmp_path / "link", one[:2]), exact=True) == []
    copy.write_bytes(b"picture")
    made = [*one[:2], (item(copy, "image", hash=b"1" * 16), [1, 0])]
    assert found(fabricate(tmp_path / "copy", made), exact=True) == [["z.jpg", "zz.jpg"]]
    with Index.open(tmp_path / "copy") as index:
        assert [group.surplus for group in duplicates(index)] == [7]


def test_no_chain_of_small_changes_joins_different_files(tmp_path, monkeypatch):
    look, same = lambda value: np.array(float(value.read_text())), lambda one, two: np.abs(np.subtract(one, two)) <= 1
    monkeypatch.setitem(groups.LOOKS, "image", (look, same))
    monkeypatch.setattr(groups, "PAIRS", 3)
    monkeypatch.setattr(groups, "COSINES", 10)
    files = []
    for place in (0, 1, 2, 3, 7, *[9] * 5):
        path = tmp_path / f"{place} {len(files)}.jpg"
        path.write_text(str(place))
        files.append((item(path, "image", width=10 - place, height=1), [1, 0.01 * len(files)]))
    names = [{name[0] for name in group} for group in found(fabricate(tmp_path / "index", files))]
    assert sorted(map(sorted, names)) == [["0", "1"], ["2", "3"], ["9"]]
    monkeypatch.setattr(groups, "NEIGHBOURS", 1)  # what a group is does not depend on who was compared first
    assert [len(group) for group in found(tmp_path / "index")].count(5) == 1


E_DIM = 16
THEMES = ("dog", "sea", "car")
KINDS = {"image": 14, "audio": 15}
"""The axis of what is the same in all files of a kind."""


@pytest.fixture
def folder(tmp_path):
    """An index of three themes with 12, 9 and 6 files, two pictures for each sound."""
    pytest.importorskip("sklearn")
    generator = np.random.default_rng(0)
    files = []
    for theme, count in zip(THEMES, (12, 9, 6), strict=True):
        for i in range(count):
            kind = "audio" if i % 3 == 2 else "image"
            vector = generator.normal(0, 0.1, E_DIM)
            vector[THEMES.index(theme)] += 1
            vector[KINDS[kind]] += 0.5
            files.append((Item(f"/p/{theme}-{i}", kind), vector))
    return fabricate(tmp_path / "i", files)


def clustered(folder, count=None, words=None):
    """Clusters of an index whose first generic words are the themes."""
    with Index.open(folder) as index:
        index.__dict__["banks"] = Banks({} if words is None else {"word": words})
        return clusters(index, count)


def test_clear_clusters_are_found_and_named_by_the_nearest_words(folder, monkeypatch):
    monkeypatch.setattr(groups, "texts_of", lambda bank: [*THEMES, "moon"])
    words = np.eye(E_DIM, dtype=np.float32)[[0, 1, 2, 8]]
    made = clustered(folder, 3, words)
    assert [{member.item.path[3:6] for member in cluster.members} for cluster in made] == [{"dog"}, {"sea"}, {"car"}]
    assert [cluster.names[0] for cluster in made] == ["dog", "sea", "car"]
    for cluster in made:
        assert {member.item.modality for member in cluster.members} == {"image", "audio"}
        similarities = [member.similarity for member in cluster.members]
        assert similarities == sorted(similarities, reverse=True)
    assert made == clustered(folder, 3, words)


def test_there_are_as_many_clusters_as_suit_without_names_where_there_are_no_words(folder, tmp_path):
    made = clustered(folder)
    assert len(made) == 4  # the root of 27 / 2
    assert {cluster.names for cluster in made} == {()}
    with pytest.raises(UserError, match="27 files"):
        clustered(folder, 28)
    with pytest.raises(UserError, match="1 files"):
        clustered(fabricate(tmp_path / "one", [(Item("/p/a", "image"), [1, 0])]))


ONE_KIND = np.array(["image"] * 60)


@pytest.fixture
def vectors():
    generator = np.random.default_rng(0)
    return unit(generator.normal(size=(60, 8)) * (5, 3, 1, 1, 1, 1, 1, 1)).astype(np.float32)


def test_points_are_the_principal_components_up_to_sign_and_scale(vectors):
    sklearn = pytest.importorskip("sklearn.decomposition")
    points = plane(vectors, ONE_KIND)
    assert (points.shape, points.dtype) == ((60, 2), np.float32)
    assert (points.min() >= 0, points.max() <= 1, np.ptp(points, axis=0).min() > 0.95) == (True, True, True)
    expected = sklearn.PCA(2).fit_transform(unit(vectors - vectors.mean(axis=0)))
    inside = ((points > 0) & (points < 1)).all(axis=1)
    assert inside.sum() >= 56
    correlations = np.corrcoef(points[inside].T, expected[inside].T)[:2, 2:]
    np.testing.assert_allclose(np.abs(correlations.diagonal()), 1, atol=1e-5)
    assert (plane(vectors, ONE_KIND) == points).all()


def test_kinds_are_no_islands(vectors):
    apart = np.zeros(8, np.float32)
    apart[7] = 3
    points = plane(unit(np.concatenate([vectors + apart, vectors - apart])), np.repeat(["image", "audio"], 60))
    assert np.abs(points[:60].mean(axis=0) - points[60:].mean(axis=0)).max() < 0.05


@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_files_have_points_too(vectors, count):
    points = plane(vectors[:count], ONE_KIND[:count])
    assert points.shape == (count, 2)
    assert np.isfinite(points).all()
    assert plane(np.array([[1.0], [-1.0]], np.float32), ONE_KIND[:2]).shape == (2, 2)  # vectors of one number
