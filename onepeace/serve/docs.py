"""The routes of the API as a page, made of its OpenAPI description. FastAPI's own page loads scripts from elsewhere."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

EXAMPLE = """\
curl -s localhost:7860/v1/embeddings -H 'content-type: application/json' -d '{"input": ["a dog barking"]}'

printf '{"image": "%s", "text": "in the snow", "top": 5}' "$(base64 -w0 dog.jpg)" |
  curl -s localhost:7860/search -H 'content-type: application/json' -d @-"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>onepeace API</title>
<style>
body {{ margin: 0 auto; padding: 1.5rem 1rem 3rem; max-width: 56rem; font: 1rem/1.5 system-ui, sans-serif; }}
h2 {{ margin: 2rem 0 .25rem; font-size: 1.05rem; }} code {{ font-family: ui-monospace, monospace; }}
table {{ border-collapse: collapse; width: 100%; }}
td {{ padding: .35rem .75rem .35rem 0; border-top: 1px solid #8885; vertical-align: top; }}
pre {{ padding: .75rem 1rem; overflow-x: auto; border: 1px solid #8885; border-radius: .5rem; }}
</style></head><body>
<h1>onepeace API</h1>
<p>{about} The machine-readable form is <a href="openapi.json">openapi.json</a>. With a password, send it with every
request: <code>Authorization: Bearer PASSWORD</code>.</p>
<pre><code>{example}</code></pre>
{routes}
</body></html>
"""


def render(description: Mapping[str, Any]) -> str:
    """The page of an OpenAPI description."""
    routes = []
    for path, methods in description["paths"].items():
        for method, about in methods.items():
            body = about.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            schema = description["components"]["schemas"].get(body.get("$ref", "").rpartition("/")[2], {})
            routes.append(
                f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(about.get('summary', ''))}. "
                f"{escape(schema.get('description', ''))}</p>{_fields(schema)}"
            )
    return PAGE.format(
        about=escape(description["info"]["description"]), example=escape(EXAMPLE), routes="\n".join(routes)
    )


def _fields(schema: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(_type(about))}</td>"
        f"<td>{escape(about.get('description', ''))}</td></tr>"
        for name, about in schema.get("properties", {}).items()
    ]
    return f"<table>{''.join(rows)}</table>" if rows else ""


def _type(about: Mapping[str, Any]) -> str:
    """The type of a field, and its value when it is not given."""
    if "enum" in about:
        text = " | ".join(map(str, about["enum"]))
    elif "anyOf" in about:
        text = " or ".join(_type({**one, "default": None}) for one in about["anyOf"] if one.get("type") != "null")
    elif about.get("type") == "array":
        text = f"list of {_type(about.get('items', {}))}"
    else:
        text = about.get("type", "")
    default = about.get("default")
    return text if default in (None, [], {}) else f"{text} ({json.dumps(default)})"
