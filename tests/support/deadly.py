"""A model whose files say what becomes of the process that embeds them, for tests of embedding by other processes."""

import os
import signal

from support.crash import Embedder

from onepeace.errors import UserError


def end_process():
    os.kill(os.getpid(), signal.SIGKILL)


class _Deadly(Embedder):
    def stream(self, values, **options):
        import torch

        from onepeace.embed.encode import Embedded, Windows

        for index, result in enumerate(super().stream(self._read(values))):
            if result.windows is None:
                yield Embedded(index, "", error=UserError(result.reason))
            else:
                vectors = torch.from_numpy(result.windows.vectors)
                windows = Windows(vectors, result.windows.starts, result.windows.ends)
                yield Embedded(index, "", vectors[0], windows)

    def _read(self, values):
        for value in values:
            content = value["text"].read_text()
            if "deadly" in content:
                end_process()
            yield value


def load(name, *, device, dtype):
    """Texts with "deadly" in them end the process, "long" and "bad" are as in crash.py."""
    if dtype == "broken":
        raise RuntimeError("broken weights\nand more")
    if dtype == "deadly":
        end_process()
    return _Deadly()
