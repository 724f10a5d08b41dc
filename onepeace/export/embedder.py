"""An export in place of a model: `open_export` gives an `Embedder` whose vectors onnxruntime computes."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from onepeace.embed.embedder import Embedder
from onepeace.errors import UserError
from onepeace.export.folder import FORMAT, RECORD
from onepeace.export.graph import OUTPUT
from onepeace.export.session import open_session
from onepeace.model import Encoder
from onepeace.processors import PROCESSORS


def open_export(folder: str | os.PathLike[str], *, threads: int = 0) -> Embedder:
    """The branches of a folder of ONNX files, ready to encode (`onepeace.load` has them in torch).

    What needs the network itself, `features`, is not there.

    Args:
        threads: of one operator; 0 takes all cores.

    Raises:
        UserError: no export in ONNX, one of another format, or files that onnxruntime does not read.
    """
    folder = Path(folder)
    try:
        record = json.loads((folder / RECORD).read_bytes())
        form, version, branches = record["form"], record["format"], record["branches"]
        embed_dim, logit_scale = record["embed_dim"], record["logit_scale"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: no {RECORD} that can be read; make one with: onepeace export") from error
    if version != FORMAT or form == "torch":
        raise UserError(f"{folder}: a {form} export of format {version}; onnx and int8 of {FORMAT} can be opened here")
    sessions = {key: open_session(folder / about["file"], threads=threads) for key, about in branches.items()}
    processors = {key: PROCESSORS[key].from_config(about["preprocessing"], folder) for key, about in branches.items()}
    module = OnnxModule(sessions, embed_dim, logit_scale)
    return Embedder(module, processors, workers=1)  # a session has threads of its own


class OnnxModule(Encoder):
    """Sessions by modality, called as the model is."""

    def __init__(self, sessions: Mapping[str, Any], embed_dim: int, logit_scale: float):
        super().__init__()
        self.sessions = dict(sessions)
        self.config = SimpleNamespace(embed_dim=embed_dim, projections=tuple(sessions), heads={})
        self.logit_scale = nn.Parameter(torch.tensor(math.log(logit_scale)), requires_grad=False)

    def forward(self, inputs: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        """Unit vectors (B, E) of each given modality."""
        return {key: self._run(self.sessions[key], batch) for key, batch in inputs.items()}

    def _run(self, session: Any, batch: Mapping[str, Tensor]) -> Tensor:
        arrays = {name: tensor.numpy() for name, tensor in batch.items()}
        if any(entry.name == "lengths" for entry in session.get_inputs()) and "lengths" not in batch:
            first = next(iter(batch.values()))
            arrays["lengths"] = torch.full(first.shape[:1], first.shape[1]).numpy()
        return torch.from_numpy(session.run([OUTPUT], arrays)[0])
