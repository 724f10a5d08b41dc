"""A model whose files say what becomes of the process that embeds them, for tests of embedding by several processes."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from support.crash import Embedder

from onepeace.errors import UserError
from onepeace.index.workers import Model


class _Deadly(Embedder):
    def stream(self, values, **options):
        import torch

        for index, result in enumerate(super().stream(self._read(values))):
            result.index = index
            result.vector = None if result.error else torch.from_numpy(result.vector.numpy())
            yield result

    def _read(self, values):
        for value in values:
            content = value["text"].read_text()
            if "deadly" in content:
                os.kill(os.getpid(), signal.SIGKILL)
            if "slow" in content:
                time.sleep(600)
            yield value


@dataclass(frozen=True)
class DeadlyModel(Model):
    """Texts with "deadly" in them kill the process, with "slow" they take for ever, "long" and "bad" as in crash.py."""

    def load(self):
        if self.dtype == "none":
            raise UserError("no such precision")
        if self.dtype == "deadly":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.device is not None and os.path.isdir(self.device):
            (Path(self.device) / str(os.getpid())).touch()
        return _Deadly()


def main() -> None:
    """Builds argv[1] of argv[2] with two processes, which leave their ids as files in argv[3]."""
    from onepeace import device
    from onepeace.index import write

    write.Model = DeadlyModel
    device.devices_of = lambda name, size: [sys.argv[3]] * size
    write.build(sys.argv[1], [sys.argv[2]], sys.argv[4], workers=2, batch_size=8, progress=False)


if __name__ == "__main__":
    main()
