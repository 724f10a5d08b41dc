"""A layout that the package does not know: registered from outside, written by the command, read by the trainer."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.downloads import fill, picture

from onepeace.cli import main
from onepeace.data.shards import read_source
from onepeace.datasets.layout import HeldOut, Record, Split, option, skipped
from onepeace.datasets.pictures import Photographs
from onepeace.errors import UserError


@dataclass(frozen=True)
class Pets(Photographs):
    """Pets: one photograph per name, from nowhere.

    SOURCE holds NAME_NUMBER.png files.
    """

    family = "pets"
    size: int = option(16, "short side of the pictures in pixels")
    val: int = option(0, "the number that is validation data")

    def splits(self, folder: Path, held_out: HeldOut) -> Iterator[Split]:
        paths = sorted(folder.glob("*_*.png"))
        if not paths:
            raise UserError(f"{folder}: no NAME_NUMBER.png files")
        for validation, shards in ((True, "val/pets/pets"), (False, "train/image_text/pets")):
            records = [self._record(path) for path in paths if path.stem.endswith(f"_{self.val}") == validation]
            yield Split(shards, records, self.encode)

    def _record(self, path: Path):
        name, number = path.stem.split("_")
        if name == "nobody":
            return skipped(path, "it is nobody")
        targets = {"label": name, "age": int(number)}
        inputs = {"image": path, "text": [f"a {name}", name]}
        return Record(f"pets_{path.stem}", "Pets", inputs, targets, {"license": "CC0", "owner": "me"})


@pytest.mark.usefixtures("layouts_restored")
def test_a_layout_from_outside_becomes_shards_that_the_trainer_reads(tmp_path, capsys):
    code = "import sys\nfrom onepeace.datasets import LAYOUTS\nLAYOUTS['pets'] = sys.modules[%r].Pets()\n"
    (tmp_path / "mine.py").write_text(code % __name__)
    files = {f"{name}_{i}.png": picture(len(name) + i, (64, 32)) for name in ("dog", "parrot") for i in range(3)}
    fill(tmp_path / "download", {**files, "nobody_1.png": "", "cat_1.png": "no picture"})
    pets = ["shards", "--import", str(tmp_path / "mine.py"), "--layout", "pets"]
    assert main([*pets, str(tmp_path / "download"), "-o", str(tmp_path / "root"), "val=2"]) == 0
    err = capsys.readouterr().err
    assert "nobody_1.png: it is nobody" in err
    assert "cat_1.png: " in err
    dog, *others = read_source("train/image_text/pets-*.tar", ("image", "text"), tmp_path / "root")
    assert (dog.key, dog.captions, dog.targets) == ("pets_dog_0", ["a dog", "dog"], {"label": "dog", "age": 0})
    assert dog.inputs["image"].startswith(b"RIFF")
    assert [sample.key for sample in others] == ["pets_dog_1", "pets_parrot_0", "pets_parrot_1"]
    held_out = read_source("val/pets/*.tar", ("image", "text"), tmp_path / "root")
    assert {sample.key for sample in held_out} == {"pets_dog_2", "pets_parrot_2"}
    assert main([*pets, "--help"]) == 0
    assert "val=0 " in capsys.readouterr().out
    assert main(["shards", "--import", str(tmp_path / "gone.py"), "--layout", "pets"]) == 2
    assert "gone.py: no such file" in capsys.readouterr().err
