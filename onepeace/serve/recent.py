"""Pictures and sounds of recent searches, in memory, so that a link to a search can name them.

Nothing is written to the disk: after a restart of the server, or `MOST_BYTES` of newer uploads, a key is unknown.
"""

import hashlib
import threading
from collections import OrderedDict

from onepeace.files.source import NamedBytes
from onepeace.serve.uploads import Refused

MOST_BYTES = 64 << 20
"""Bytes of uploads that are kept, the last used."""
PREFIX = "upload:"
"""Start of a value that names a recent upload by its key."""


class RecentUploads:
    """Uploads by key, a hash of the content; for many threads."""

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._uploads: OrderedDict[str, bytes] = OrderedDict()
        self._num_bytes = 0

    def keep(self, data: bytes) -> str:
        """Keep an upload; returns its key."""
        key = hashlib.blake2b(data, digest_size=16).hexdigest()
        with self._lock:
            if key not in self._uploads:
                self._uploads[key] = data
                self._num_bytes += len(data)
            self._uploads.move_to_end(key)
            while self._num_bytes > self._most_bytes:
                _, oldest = self._uploads.popitem(last=False)
                self._num_bytes -= len(oldest)
        return key

    def get(self, key: str) -> NamedBytes:
        """The upload with a key; Refused (410) if it is not kept any more."""
        with self._lock:
            if key not in self._uploads:
                raise Refused(410, f"{key[:40]}: this upload is not kept any more; send the file again")
            self._uploads.move_to_end(key)
            return NamedBytes(self._uploads[key], "upload")
