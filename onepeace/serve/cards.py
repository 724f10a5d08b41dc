"""Files of the index as HTML for the page. Everything that comes from a file or a user is escaped."""

import os
import time
from collections.abc import Sequence
from html import escape
from pathlib import Path

from onepeace.files.source import scheme, suffix
from onepeace.index.search import Hit, Results
from onepeace.index.store import Item
from onepeace.serve import media
from onepeace.serve.hits import KINDS, VIDEO_TYPES, moment, readable


def results(found: Results) -> str:
    """The hits of a search, best first."""
    if not found.hits:
        reason = "no file is left by the filters" if not found.compared else "nothing found"
        return problem(f"Nothing to show: {reason}.")
    said = f"{len(found.hits)} best of {found.compared} files"
    if found.relevant is False:
        said = f"Nothing relevant found; the nearest are these ({said})"
    best = max(_value(hit) for hit in found.hits)
    return _list(said, [_card(hit.item, hit, best) for hit in found.hits])


def browse(items: Sequence[Item], total: int) -> str:
    """Files for someone who has not asked anything yet."""
    return _list(f"Some of the {total} files", [_card(item, None, 0.0) for item in items])


def problem(message: str) -> str:
    """What is wrong, in one line."""
    return f'<p class="op-problem" role="alert">{escape(readable(message))}</p>'


def like(item: Item) -> str:
    """The item that a query is like."""
    picture = f'<img src="{address(item, "/thumbnail")}" alt="">' if item.modality != "text" else ""
    name = escape(readable(Path(item.path).name))
    return (
        f'<div class="op-like">{picture}<span>like <b>{name}</b></span>'
        f'<button type="button" data-drop aria-label="search no longer for what is like {name}">&times;</button></div>'
    )


def _list(said: str, cards: Sequence[str]) -> str:
    return f'<p class="op-said" role="status">{escape(said)}</p><ol class="op-cards">{"".join(cards)}</ol>'


def _value(hit: Hit) -> float:
    return hit.score if hit.match is None else hit.match


def address(item: Item, what: str = "", at: float | None = None) -> str:
    """Of a file, below the address of the page; another file that gets the number one day has another address."""
    return f"files/{item.id}{what}?v={item.mtime_ns:x}" + (f"&amp;at={moment(at)}" if at else "")


def _card(item: Item, hit: Hit | None, best: float) -> str:
    path = Path(item.path)
    name, folder = escape(readable(path.name)), escape(readable(path.parent).removeprefix(os.getcwd() + os.sep))
    kind = hit.modality if hit is not None and item.modality != "video" else item.modality
    found_by = f"{KINDS.get(hit.modality, hit.modality)} " if hit is not None and kind == "video" else ""
    facts = [] if hit is None or hit.start is None else [f"{found_by}from {_clock(hit.start)}"]
    facts += [f"{item.width} &times; {item.height}"] if item.width and item.height else []
    facts += [_clock(item.duration)] if item.duration else []
    facts += [time.strftime("%Y-%m-%d", time.gmtime(item.date))] if item.date else []
    caption = f'<div class="op-caption">{escape(item.caption)}</div>' if item.caption and kind != "text" else ""
    copies = f'<div class="op-folder">and {len(hit.copies)} nearly the same</div>' if hit and hit.copies else ""
    score = "" if hit is None else _score(hit, best)
    return f"""<li class="op-card {kind}">
<div class="op-well">{_media(item, None if hit is None else hit.start, name)}</div>
<div class="op-what"><div class="op-row"><span class="op-badge">{KINDS.get(kind, kind)}</span>{score}</div>
<div class="op-name" title="{escape(readable(item.path), quote=True)}">{name}</div>
<div class="op-folder">{folder}</div>{caption}<div class="op-facts">{" &middot; ".join(facts)}</div>{copies}
<button type="button" data-like="{item.id}" aria-label="search with {name}">Search with this</button></div></li>"""


def _score(hit: Hit, best: float) -> str:
    if hit.match is None:
        what, shown = "cosine similarity", f"{hit.score:.3f}"
    else:
        what, shown = "probability that it is relevant", f"{100 * hit.match:.0f} %"
    share = 100 * max(_value(hit), 0.0) / best if best > 0 else 0.0
    return (
        f'<span class="op-score" title="{what}">{shown}</span>'
        f'<span class="op-track" aria-hidden="true"><i style="width:{share:.0f}%"></i></span>'
    )


def _media(item: Item, start: float | None, name: str) -> str:
    """The picture, player or words of a file; a player starts at the second that was found."""
    at = f"#t={moment(start)}" if start else ""
    if scheme(item.path):  # nothing is loaded from elsewhere
        return f'<span class="op-words">{name}</span>'
    if item.modality == "image":
        return (
            f'<a href="{address(item)}" target="_blank" rel="noopener">'
            f'<img src="{address(item, "/thumbnail")}" alt="{name}" loading="lazy"></a>'
        )
    if item.modality == "audio":
        return (
            f'<img class="op-wave" src="{address(item, "/thumbnail")}" alt="" loading="lazy">'
            f'<audio controls preload="none" aria-label="{name}" src="{address(item)}{at}"></audio>'
        )
    if item.modality == "video":
        picture = address(item, "/thumbnail", start)
        if suffix(item.path) in VIDEO_TYPES:
            return (
                f'<video controls preload="none" aria-label="{name}" poster="{picture}" '
                f'src="{address(item)}{at}"></video>'
            )
        return f'<a href="{address(item)}" download><img src="{picture}" alt="{name}" loading="lazy"></a>'
    return f"<blockquote>{escape(media.excerpt(item))}</blockquote>"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"
