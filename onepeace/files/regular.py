"""Opening files that may be something else by then: a pipe would be waited for, a device read without end."""

import errno
import os
import stat


def open_regular(path: str, flags: int) -> int:
    """Descriptor of a regular file: the opener of `open`.

    Raises:
        OSError: the path cannot be opened, or is a pipe, a device or a folder.
    """
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return descriptor
