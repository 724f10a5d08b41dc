"""push_to_hub and back over HTTP: a small server speaks what the Hub's client asks for, in a process of its own."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import urlparse

import pytest
from support.server import serving

pytest.importorskip("transformers")

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
import onepeace.plugins.transformers as plugin
import torch
from transformers import AutoModel, AutoProcessor

model = plugin.OnePeaceModel.from_onepeace(sys.argv[1])
model.push_to_hub("someone/model")
plugin.OnePeaceProcessor.from_onepeace(sys.argv[1]).push_to_hub("someone/model")
again = AutoModel.from_pretrained("someone/model").state_dict()
state = model.state_dict()
assert again.keys() == state.keys()
assert all(torch.equal(again[name], state[name]) for name in state)
ids = AutoProcessor.from_pretrained("someone/model")(text=["a dog"], return_tensors="pt")
print(sorted(ids))
"""


class Hub(BaseHTTPRequestHandler):
    """One repository: create, preupload, commit, resolve. Files are small, so none goes to large-file storage."""

    files: dict[str, bytes]
    asked: list[str]

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = urlparse(self.path).path
        self.asked.append((path, self.headers["Authorization"]))
        host = f"http://{self.headers['Host']}"
        if path == "/api/repos/create":
            return self.answer({"url": f"{host}/someone/model"})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if path == "/api/models/someone/model/preupload/main":
            about = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                     for one in json.loads(body)["files"]]  # fmt: skip
            return self.answer({"files": about})
        if path == "/api/models/someone/model/commit/main":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            return self.answer({"commitUrl": f"{host}/someone/model/commit/{'a' * 40}", "commitOid": "a" * 40})
        self.missing()

    def do_GET(self):
        path = urlparse(self.path).path
        prefix = next((p for p in ("main", "a" * 40) if path.startswith(f"/someone/model/resolve/{p}/")), None)
        name = path.rpartition(f"/resolve/{prefix}/")[2]
        if prefix is None or name not in self.files:
            return self.missing()
        content = self.files[name]
        etag = hashlib.sha256(content).hexdigest()
        self.answer(content, {"ETag": f'"{etag}"', "X-Repo-Commit": "a" * 40})

    do_HEAD = do_GET

    def answer(self, content, headers=()):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(200)
        for name, value in {"Content-Length": str(len(body)), **dict(headers)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def missing(self):
        self.send_response(404)
        self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        """Nothing on stderr."""


@pytest.mark.slow  # the quick one: test_pushing_to_the_hub_uploads_the_saved_files
def test_a_model_is_pushed_and_comes_back(random_folder, tmp_path):
    handler = type("Repository", (Hub,), {"files": {}, "asked": []})
    with serving(handler) as address:
        own = {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path), "HF_TOKEN": "hf_some", "HF_HUB_OFFLINE": "0",
               "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "PYTHONPATH": str(ROOT)}  # fmt: skip
        command = [sys.executable, "-c", SCRIPT, str(random_folder)]
        done = subprocess.run(command, env={**os.environ, **own}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "['attention_mask', 'input_ids']"
    assert handler.files.keys() >= {"config.json", "model.safetensors", "processor_config.json", "tokenizer.json"}
    assert handler.asked.count(("/api/models/someone/model/commit/main", "Bearer hf_some")) == 2
