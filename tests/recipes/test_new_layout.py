"""A layout that the package does not know: a file of one's own, written by the command, read by the trainer."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.downloads import picture

from onepeace.datasets.layout import HeldOut, Record, Split, option, skipped
from onepeace.datasets.media import Photographs
from onepeace.errors import UserError


@dataclass(frozen=True)
class Pets(Photographs):
    """Pets: one photograph per name, from nowhere.

    SOURCE holds NAME_NUMBER.png files.
    """

    family = "pets"
    size: int = option(16, "short side of the pictures in pixels")
    val: int = option(0, "the number that is validation data")
    text: str = option("text", "where the names go")
    bare: bool = option(False, "whether records come without a split")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        paths = sorted(folder.glob("*_*.png"))
        if not paths:
            raise UserError(f"{folder}: no NAME_NUMBER.png files")
        for validation, shards in ((True, "val/pets/pets"), (False, "train/image_text/pets")):
            records = [self._record(path) for path in paths if path.stem.endswith(f"_{self.val}") == validation]
            yield records if self.bare else Split(shards, records, self.encode)  # type: ignore[misc]

    def _record(self, path: Path):
        name, number = path.stem.split("_")
        if name == "nobody":
            return skipped(path, "it is nobody")
        return Record(
            key=f"pets_{path.stem}",
            source="Pets",
            inputs={"image": path, self.text: [f"a {name}", name]},
            targets={"label": name, "age": int(number)},
            about={"license": "CC0", "owner": "me"},
        )


@pytest.fixture
def layout(tmp_path):
    """The file of the layout."""
    file = tmp_path / "pets.py"
    file.write_text(f"import sys\nlayout = sys.modules[{__name__!r}].Pets()\n")
    return file


def test_new_layout_becomes_shards_that_the_trainer_reads(prepare, layout):
    files = {"nobody_1.png": "", "cat_1.png": "no picture"}
    for name in ("dog", "parrot"):
        for i in range(3):
            files[f"{name}_{i}.png"] = picture(len(name) + i, (64, 32))

    shards = prepare("pets", "val=2", files=files, layout=layout)

    assert "nobody_1.png: it is nobody" in shards.err
    assert "cat_1.png: " in shards.err
    samples = shards.samples("train/image_text/pets-*.tar", "image", "text")
    assert list(samples) == ["pets_dog_0", "pets_dog_1", "pets_parrot_0", "pets_parrot_1"]
    dog = samples["pets_dog_0"]
    assert dog.captions == ["a dog", "dog"]
    assert dog.targets == {"label": "dog", "age": 0}
    assert dog.inputs["image"].startswith(b"RIFF")
    assert set(shards.samples("val/pets/*.tar")) == {"pets_dog_2", "pets_parrot_2"}


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ("text=txt", r"dog_0\.png: its inputs have 'txt'; known: .*text"),
        ("bare=true", "its layout yields a list, not a Split"),
    ],
)
def test_mistake_in_a_layout_is_one_line(prepare, layout, mistake, told):
    shards = prepare("pets", mistake, files={"dog_0.png": picture(1, (64, 32))}, layout=layout, code=1)

    assert re.search(rf"^onepeace: .*{told}", shards.err)
    assert not shards.train
    assert not shards.val
