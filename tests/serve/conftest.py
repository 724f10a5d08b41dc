import os
import shutil
import subprocess
import sys

import pytest
from PIL import ExifTags, Image

from onepeace.index import Index, build

PICTURES = ("cat", "dog", "sea", "horses")
SOUNDS = ("cat", "dog", "sea", "rain")
NOTE_TIME = 1620216000
"""When the text was written: on 5 May 2021, years before the samples."""
KEYWORDS = b"""<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"
xmlns:dc="http://purl.org/dc/elements/1.1/"><rdf:Description><dc:subject><rdf:Bag>
<rdf:li>beach</rdf:li><rdf:li>waves</rdf:li></rdf:Bag></dc:subject></rdf:Description></rdf:RDF></x:xmpmeta>"""


def add_tags(path):
    """Write a camera, a lens, an artist, keywords and a position into a picture."""
    exif = Image.Exif()
    exif[ExifTags.Base.Model] = "X100V"
    exif[ExifTags.Base.Artist] = "Ann Example"
    exif.get_ifd(ExifTags.IFD.Exif)[ExifTags.Base.LensModel] = "23mm F2"
    gps = ExifTags.GPS
    position = {
        gps.GPSLatitudeRef: "N",
        gps.GPSLatitude: (48, 6, 0),
        gps.GPSLongitudeRef: "E",
        gps.GPSLongitude: (11, 36, 0),
    }
    exif.get_ifd(ExifTags.IFD.GPSInfo).update(position)
    with Image.open(path) as image:
        image.save(path, exif=exif, xmp=KEYWORDS)


@pytest.fixture(scope="package")
def collection(tmp_path_factory, samples):
    """A folder of four pictures, four sounds and a text; one picture has tags."""
    folder = tmp_path_factory.mktemp("collection") / "files"
    folder.mkdir()
    for name in PICTURES:
        shutil.copy2(samples / "images" / f"{name}.jpg", folder)
    add_tags(folder / "sea.jpg")
    for name in SOUNDS:
        shutil.copy2(samples / "sounds" / f"{name}.ogg", folder)
    (folder / "note.txt").write_text("a <b>dog</b> barks at the sea", encoding="utf-8")
    os.utime(folder / "note.txt", (NOTE_TIME, NOTE_TIME))
    return folder


@pytest.fixture(scope="package")
def index_folder(collection, random_folder):
    """An index of it, by the very small random model."""
    folder = collection.parent / "index"
    build(folder, [collection], str(random_folder), device="cpu", progress=False)
    return folder


@pytest.fixture(scope="package")
def index(index_folder):
    with Index.open(index_folder, device="cpu") as opened:
        yield opened


@pytest.fixture(scope="package")
def ids(index):
    """The number of every file, by its name."""
    return {os.path.basename(item.path): item.id for item in index.items()}


@pytest.fixture(scope="package")
def server(index_folder):
    """The address of a server in a process of its own, which has to end well, and to leave nothing behind."""
    temporary = index_folder.parent / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    command = [sys.executable, "-m", "onepeace", "serve", index_folder, "--port", "0", "--device", "cpu"]
    with open(index_folder.parent / "server.log", "w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment)
        line = process.stdout.readline()
        try:
            assert line.startswith("onepeace at http://127.0.0.1:")
            yield line.split()[2].rstrip(";")
            assert process.poll() is None
        finally:
            process.terminate()
            process.wait()
            log.seek(0)
            messages = log.read()
            assert "Traceback" not in messages, messages
    assert process.returncode == 0
    assert not list(temporary.iterdir())


@pytest.fixture(scope="package")
def client(index):
    """A client of the API, with the limits of support.api."""
    from support.api import HOSTS, client_of

    return client_of(index, hosts=HOSTS)
