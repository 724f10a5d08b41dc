"""`onepeace serve`: the web page and JSON API over an index, or the API of a model, for this machine or for others."""

import argparse
import logging
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
"""Minimum length of a password or key."""
EXAMPLES = f"""\
PATHS is one index (see: onepeace index build), or files and folders, whose index is then kept in the cache; without
them, --model is served alone, by the API of vectors and classes. The default is {SAMPLES}, if it exists.

  onepeace serve my.index
  onepeace serve my.index --port 8000 --host 0.0.0.0    # on the network; prints a password
  onepeace serve --model tiny --keys keys.txt --host 0.0.0.0    # a server for vectors

The page is at /. The server serves only files of the index, and opens no path or URL that a client names. On any
address but a loopback address it requires a password; the password and all data are sent over plain HTTP, so put a TLS
proxy in front, or use an SSH tunnel. Other users of this machine can see --password; set {PASSWORD} instead, or give
--keys. A signal to end (SIGTERM, Ctrl-C) is obeyed when what was accepted is answered, a second one at once.

exit code: 0 when it is stopped (Ctrl-C), 1 on failure, 2 for wrong usage"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from onepeace.serve.limits import Limits

    parser.epilog = EXAMPLES
    parser.add_argument("paths", nargs="*", metavar="INDEX|PATHS", help="an index, or files and folders")
    parser.add_argument("--host", default="127.0.0.1", metavar="ADDR", help="address to listen on (127.0.0.1)")
    parser.add_argument(
        "--port", type=options.whole(0, 65535), default=PORT, metavar="N", help=f"port ({PORT}); 0 picks a free one"
    )
    text = "required from clients; generated for non-loopback addresses if not given"
    parser.add_argument("--password", metavar="WORD", help=text)
    parser.add_argument("--keys", type=Path, metavar="FILE", help="passwords, one a line, of which clients need one")
    parser.add_argument("--generator", metavar="NAME", help="generative model for captions, answers and boxes")
    options.add_model(parser, None, batch_size=None, dtype=False)
    service = parser.add_argument_group("for a service")
    text = "site whose pages may send requests, https://example.org; can be given several times"
    service.add_argument("--cors", action="append", default=[], metavar="ORIGIN", help=text)
    service.add_argument("--root-path", default="", metavar="PATH", help="path at which a proxy offers the server")
    text = "log lines: text, json, or off for those of requests (text)"
    service.add_argument("--log", choices=("text", "json", "off"), default="text", metavar="FORM", help=text)
    text = "seconds in which accepted requests are still answered after a signal to end (10)"
    service.add_argument("--drain", type=options.whole(0), default=10, metavar="SECONDS", help=text)
    limits = Limits()
    for name, text in (
        ("items", "items of one request of /v1/embeddings"),
        ("queue", "items that wait for the model; requests for more are answered with 503"),
        ("requests", "requests at once; further ones are answered with 503"),
    ):
        default = getattr(limits, name)
        help_text = f"maximum number of {text} ({default})"
        service.add_argument(f"--{name}", type=options.positive, default=default, metavar="N", help=help_text)


def run(args: argparse.Namespace) -> int:
    need("fastapi", "web")
    need("uvicorn", "web")
    need("prometheus_client", "web")
    from onepeace.export.exported import with_text_branch
    from onepeace.serve import server
    from onepeace.serve.limits import Limits
    from onepeace.serve.model import ModelService, Queues
    from onepeace.serve.service import Service

    keys = _keys(args)
    if not keys and not server.is_loopback(args.host):
        keys = [secrets.token_urlsafe(16)]
        print(f"password (any user name): {keys[0]}", flush=True)
    _set_log(args.log)
    limits = Limits(items=args.items, queue=args.queue, requests=args.requests)
    queues = Queues(limits, with_text_branch)
    serving = {
        "host": args.host,
        "port": args.port,
        "keys": keys,
        "origins": args.cors,
        "root_path": args.root_path.rstrip("/"),
        "drain": args.drain,
    }
    if args.model is not None and not args.paths:
        if args.generator is not None:
            raise UsageError("--generator writes about files of an index; give one")
        args.dtype = "auto"
        model = options.load(args)
        return server.run(ModelService(lambda: model, limits, queues), **serving)
    args.paths = args.paths or ([str(SAMPLES)] if SAMPLES.is_dir() else [])
    if not args.paths:
        raise UsageError("nothing to serve; give an index (onepeace index build my.index FOLDER), or --model NAME")
    with open_index(args, queues.encode) as (index, problems):
        files.exit_code(problems, len(index))  # lists the failed files; the others are served
        return server.run(Service(index, args.generator, limits, queues), **serving)


def _keys(args: argparse.Namespace) -> list[str]:
    """The passwords of the file, the option and the environment."""
    keys = []
    if args.keys is not None:
        try:
            keys = [line.strip() for line in args.keys.read_text("utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--keys: cannot be read ({error})", where=args.keys) from error
        if not keys:
            raise UsageError("--keys: no key in it; write one on each line", where=args.keys)
    password = args.password if args.password is not None else os.environ.get(PASSWORD) or None
    if password is not None:
        keys.append(password)
    for key in keys:
        if len(key) < MIN_LENGTH:
            raise UsageError(f"a password or key has {len(key)} characters; give at least {MIN_LENGTH}")
    return keys


def _set_log(form: str) -> None:
    from onepeace.serve.observe import JSONLines, logger

    if form == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JSONLines())
    if form == "off":
        logger.setLevel(logging.WARNING)
