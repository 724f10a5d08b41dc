import pytest
from support.finetuning import QUICK, write_pictures, write_sounds, write_table

from onepeace.cli import main
from onepeace.finetune import split as splitting


@pytest.fixture
def no_near_copies(monkeypatch):
    """Squares of one colour would be near copies of one another."""
    monkeypatch.setattr(splitting, "NEAR_COPY_COSINE", {})


@pytest.fixture
def out(tmp_path):
    """The folder of the fine-tuning."""
    return tmp_path / "out"


@pytest.fixture
def finetune(random_folder, out, capsys, quick_finetuning):
    """Runs the command, which must end with that code; returns its `out` and `err`."""

    def run(source, *arguments, code=0, model=random_folder, out=out):
        call = ["finetune", source, "-o", out, "--model", model, *QUICK, *arguments]
        assert main([str(argument) for argument in call]) == code
        return capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def captions_table(tmp_path_factory):
    """A captions.csv with 48 pictures, 16 of which have a second row, a broken picture, and one that is not there."""
    folder = tmp_path_factory.mktemp("pictures")
    pictures = [path.name for path in write_pictures(folder, 12)]
    rows = [(name, f"a square called {name}") for name in pictures]
    rows += [(name, f"something called {name}") for name in pictures[:16]]
    (folder / "broken.png").write_bytes(b"\x89PNG nothing")
    rows += [("broken.png", "a broken file"), ("missing.png", "no file")]
    return write_table(folder / "captions.csv", ("image", "text"), *rows)


@pytest.fixture(scope="session")
def sounds_in_classes(tmp_path_factory):
    """A folder for each of three kinds of tones, and a README.txt that is no caption."""
    folder = tmp_path_factory.mktemp("sounds")
    write_sounds(folder, 12, ("low", "middle", "piercing"))
    (folder / "README.txt").write_text("about these sounds")
    return folder
