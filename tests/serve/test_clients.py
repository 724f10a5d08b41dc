"""The code of docs/guide/clients.md and service.md, each block where its libraries are installed."""

import ast
import os
import re
from pathlib import Path

import pytest
import uvicorn
from support.api import model_client, serving_in_thread

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "docs" / "guide" / name for name in ("service.md", "clients.md")]
BLOCKS = re.findall(
    r"^```py\n(.*?)^```$", "\n".join(page.read_text("utf-8") for page in PAGES), re.MULTILINE | re.DOTALL
)
"""Blocks of "py": those of "python" are checked and run on every page, with the libraries of the tests."""
KEY = "a key of keys.txt"


def modules_of(code):
    """The modules that a block imports from."""
    imported = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Import | ast.ImportFrom)]
    return {getattr(node, "module", None) or node.names[0].name for node in imported}


@pytest.fixture(scope="module")
def address(tiny):
    client = model_client(tiny, keys=[KEY])
    with serving_in_thread(uvicorn.Server(uvicorn.Config(client.app, log_level="warning"))) as (host, port):
        yield f"http://{host}:{port}"


@pytest.mark.parametrize("code", BLOCKS, ids=range(len(BLOCKS)))
def test_code_of_the_page_runs(code, address, tiny, tmp_path, monkeypatch):
    for module in modules_of(code):
        pytest.importorskip(module, reason=f"needs {module}")
    if "DATABASE_URL" in code and "DATABASE_URL" not in os.environ:
        pytest.skip("needs PostgreSQL with pgvector at $DATABASE_URL")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(ROOT / "data")
    names = {}

    exec(code.replace("http://127.0.0.1:7860", address), names)  # noqa: S102 (our own page)

    if "vectors" in names:
        assert {len(vector) for vector in names["vectors"]} == {tiny.embed_dim}
    assert "found" not in names or names["found"]
