"""`onepeace serve`: the web page and JSON API over an index, local or, with a password, on the network."""

import argparse
import os
import secrets
from pathlib import Path

from onepeace.commands import files, options
from onepeace.commands.search import open_index
from onepeace.errors import UsageError, need

SAMPLES = Path("data", "samples")
PORT = 7860
PASSWORD = "ONEPEACE_PASSWORD"  # noqa: S105 (the name of a variable)
MIN_LENGTH = 8
"""Minimum length of a password."""
EXAMPLES = f"""\
PATHS is one index (see: onepeace index build), or files and folders, whose index is then kept in the cache; the default
is {SAMPLES}, if it exists.

  onepeace serve my.index
  onepeace serve my.index --port 8000 --host 0.0.0.0    # on the network; prints a password

The page is at /. The server serves only files of the index, and opens no path or URL that a client names. On any
address but a loopback address it requires a password; the password and all data are sent over plain HTTP, so put a TLS
proxy in front, or use an SSH tunnel. Other users of this machine can see --password; set {PASSWORD} instead.

exit code: 0 when it is stopped (Ctrl-C), 1 on failure, 2 for wrong usage"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXAMPLES
    parser.add_argument("paths", nargs="*", metavar="INDEX|PATHS", help="an index, or files and folders")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDR", help="address to listen on (127.0.0.1)")
    parser.add_argument(
        "--port", type=options.whole(0, 65535), default=PORT, metavar="N", help=f"port ({PORT}); 0 picks a free one"
    )
    text = "required from clients; generated for non-loopback addresses if not given"
    parser.add_argument("--password", metavar="WORD", help=text)
    parser.add_argument("--generator", metavar="NAME", help="generative model for captions, answers and boxes")
    options.add_model(parser, None, batch_size=None, dtype=False)


def run(args: argparse.Namespace) -> int:
    need("fastapi", "web")
    need("uvicorn", "web")
    from onepeace.serve.server import is_loopback
    from onepeace.serve.server import run as serve

    password = args.password if args.password is not None else os.environ.get(PASSWORD) or None
    if password is not None and len(password) < MIN_LENGTH:
        raise UsageError(f"the password has {len(password)} characters; give at least {MIN_LENGTH}")
    if password is None and not is_loopback(args.host):
        password = secrets.token_urlsafe(16)
        print(f"password (any user name): {password}", flush=True)
    args.paths = args.paths or ([str(SAMPLES)] if SAMPLES.is_dir() else [])
    if not args.paths:
        raise UsageError("no index given; build one with: onepeace index build my.index FOLDER")
    with open_index(args) as (index, problems):
        files.exit_code(problems, len(index))  # lists the failed files; the others are served
        return serve(index, host=args.host, port=args.port, auth=password, generator=args.generator)
