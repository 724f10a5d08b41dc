"""Paths of hits as one types them."""

import os

from onepeace.commands.hits import near


def test_paths_below_the_working_folder_lose_it_and_addresses_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert near(os.path.join(os.getcwd(), "a", "b.jpg")) == os.path.join("a", "b.jpg")
    for path in ("https://example.org/a//b.jpg", "/elsewhere/b.jpg", f"{os.getcwd()}2/b.jpg"):
        assert near(path) == path
