"""The page: a query of words, a picture, a sound and a file of the index, its hits as cards; classification; the map.

Gradio draws it, on the application that `api.create_app` made. It has no door of its own: the files it shows come from
/files, and what a visitor uploads lies in a folder of this run.
"""

import logging
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from onepeace.errors import UserError, one_line
from onepeace.index.query import LIKE
from onepeace.serve import cards
from onepeace.serve.api import AWAY
from onepeace.serve.batching import Asked
from onepeace.serve.service import Service
from onepeace.serve.uploads import checked_text, too_large

logger = logging.getLogger(__name__)

FIRST = 12
"""Files shown before anything is asked."""
KEPT_SECONDS = 3600
"""Uploads are deleted when they are older."""
VISITORS = 128
"""Requests of the page that may wait; more are told so."""
AT_ONCE = 32
"""Requests of the page that run at once; the model computes them together."""
SCROLL = "() => { if (innerWidth < 760) document.getElementById('hits').scrollIntoView({behavior: 'smooth'}) }"
"""On a narrow screen the hits lie below the query."""
FAILED = "The server failed at this; its log says why."


def mount(app: FastAPI, service: Service) -> FastAPI:
    """The application with the page at /; the map in it is that at /map."""
    blocks = _blocks(service)
    blocks.has_launched = True  # else Gradio does not check the paths that a request names; `Guard` does so too
    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        allowed_paths=[],
        max_file_size=service.limits.upload,
        show_error=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        theme=_theme(),
        css=_text("page.css"),
    )


def _theme() -> gr.themes.Base:
    """Fonts that every system has, none from the web; darker colours than the default ones, to be read easily."""
    theme = gr.themes.Default(
        primary_hue="teal",
        neutral_hue="slate",
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    )
    return theme.set(
        color_accent="*primary_700",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        body_text_color_subdued="*neutral_500",
        input_placeholder_color="*neutral_500",
    )


def _text(name: str) -> str:
    return files("onepeace.serve").joinpath(name).read_text(encoding="utf-8")


def _blocks(service: Service) -> gr.Blocks:
    with gr.Blocks(
        title="onepeace", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS), fill_width=True
    ) as blocks:
        gr.HTML(lambda: _title(service), padding=True)
        with gr.Tab("Search"):
            _search_tab(service, blocks)
        with gr.Tab("Classify"):
            _classify_tab(service)
        with gr.Tab("Map"):
            gr.HTML('<iframe class="op-map" src="map" title="map of the index" loading="lazy"></iframe>')
    blocks.queue(api_open=False, max_size=VISITORS, default_concurrency_limit=AT_ONCE)
    return blocks


def _title(service: Service) -> str:
    counts = [f"{count} {cards.KINDS.get(kind, kind)}s" for kind, count in service.counts().items()]
    return (
        f'<h1 class="op-title">onepeace<small>{", ".join(counts)} &middot; model {escape(service.model)}</small></h1>'
    )


def _search_tab(service: Service, blocks: gr.Blocks) -> None:
    kinds = [(f"{cards.KINDS[key]}s", key) for key in service.counts()]
    limits = service.limits
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=340):
            words = gr.Textbox(label="Words", placeholder="a dog on the beach", lines=1, max_lines=4, autofocus=True)
            picture = _picture(label="Picture", height=190, elem_id="picture")
            sound = _sound(label="Sound", elem_id="sound")
            liked = gr.HTML(js_on_load=_text("page.js"), apply_default_css=False, elem_id="liked")
            with gr.Row():
                go = gr.Button("Search", variant="primary", scale=3, min_width=120)
                clear = gr.Button("Clear", scale=1, min_width=80)
            without = gr.Textbox(label="Without", placeholder="people", lines=1, max_lines=2)
            with gr.Accordion("Weights", open=False):
                weights = [
                    gr.Slider(-1, 0 if value == AWAY else 1, value, step=0.05, label=label)
                    for label, value in (("Words", 1), ("Picture", 1), ("Sound", 1), ("Like", 1), ("Without", AWAY))
                ]
            with gr.Accordion("Filters", open=False):
                only = gr.CheckboxGroup(kinds, label="Only", elem_id="only")
                with gr.Row():
                    after = gr.Textbox(label="From", placeholder="2024-05", min_width=120)
                    before = gr.Textbox(label="Before", placeholder="2025", min_width=120)
                path_glob = gr.Textbox(label="Path", placeholder="holidays/**/*.jpg")
                where = gr.Textbox(label="Where", placeholder="duration < 5 or width >= 1000")
                with gr.Row():
                    sort = gr.Dropdown(["match", "date", "path"], value="match", label="Sort by", min_width=120)
                    top = gr.Slider(1, limits.top, 24, step=1, label="Hits", min_width=120)
                copies = gr.Checkbox(False, label="Show near copies")
        with gr.Column(scale=5, min_width=340):
            shown = gr.HTML(js_on_load=_text("page.js"), apply_default_css=False, elem_id="hits", min_height=300)
    like = gr.State(None)

    def find(*given: Any) -> str:
        return _guarded(_find, service, *given)

    def pick(event: gr.EventData) -> tuple[Any, ...]:
        item = service.item(int(event.id))
        return item.id, cards.like(item), "", None, None

    query = [words, picture, sound, like, without]
    filters = [only, after, before, path_glob, where, sort, top, copies]
    asked = {"fn": find, "inputs": [*query, *weights, *filters], "outputs": shown, "api_visibility": "private"}
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    triggers = [go.click, words.submit, without.submit, picture.input, sound.input, blocks.load]
    gr.on(triggers, **asked, trigger_mode="always_last", show_progress="minimal")
    go.click(None, js=SCROLL, api_visibility="private")
    shown.pick(pick, None, [like, liked, words, picture, sound], **quiet).then(**asked, show_progress="minimal")
    liked.drop(lambda: (None, ""), None, [like, liked], **quiet).then(**asked, show_progress="minimal")
    clear.click(
        lambda: (None, "", "", None, None, ""), None, [like, liked, words, picture, sound, without], **quiet
    ).then(**asked, show_progress="minimal")


def _find(
    service: Service,
    words: str | None,
    picture: str | None,
    sound: str | None,
    like: int | None,
    without: str | None,
    *rest: Any,
) -> str:
    *weights, only, after, before, path_glob, where, sort, top, copies = rest
    given = [
        ("the words", "text", _filled(words)),
        ("the picture", "image", picture),
        ("the sound", "audio", sound),
        ("like", LIKE, like),
        ("without", "text", _filled(without)),
    ]
    parts = [
        (_asked(service, *part), float(weight))
        for part, weight in zip(given, weights, strict=True)
        if part[2] is not None
    ]
    if not parts:
        return cards.browse(service.some(FIRST), sum(service.counts().values()))
    found = service.search(
        parts,
        only=only,
        after=_filled(after),
        before=_filled(before),
        path_glob=_filled(path_glob),
        where=_filled(where),
        sort=sort,
        top=int(top),
        min_match=0.5,
        duplicates="show" if copies else "collapse",
    )
    return cards.results(found)


def _filled(text: str | None) -> str | None:
    """What is written in a field; None if nothing, also if it was never shown."""
    return (text or "").strip() or None


def _picture(**options: Any) -> gr.Image:
    return _as_uploaded(gr.Image(type="filepath", buttons=[], **options))


def _sound(**options: Any) -> gr.Audio:
    return _as_uploaded(gr.Audio(type="filepath", buttons=[], elem_classes="op-sound", **options))


def _as_uploaded(component: Any) -> Any:
    """A component that gives the path of the file as it was uploaded; Gradio would decode it first, at any size, and
    write it anew. (Not by a class of our own: Gradio writes a file of types beside the source of every such class.)"""
    component.preprocess = lambda payload: None if payload is None else payload.path
    return component


def _asked(service: Service, name: str, modality: str, value: Any) -> Asked:
    """A part of the query as it is encoded."""
    if modality == "text":
        return Asked(name, modality, checked_text(value, name, service.limits))
    if modality in ("image", "audio"):
        data = Path(value).read_bytes()
        if len(data) > service.limits.upload:
            raise too_large(name, len(data), service.limits)
        return Asked(name, modality, data)
    return Asked(name, modality, value)


def _guarded(function: Any, *given: Any) -> str:
    """What a function shows; where it fails, why."""
    try:
        return function(*given)
    except UserError as error:
        return cards.problem(one_line(error))
    except Exception:
        logger.exception("a request of the page failed")
        return cards.problem(FAILED)


def _classify_tab(service: Service) -> None:
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=340):
            picture = _picture(label="Picture", height=240)
            sound = _sound(label="or a sound")
            labels = gr.Textbox(
                label="Labels, with commas between them", value="dog, cat, bird, car, rain, sea", lines=3
            )
            template = gr.Textbox(label="Sentence around a label", placeholder="a photo of a {}")
            go = gr.Button("Classify", variant="primary")
        with gr.Column(scale=3, min_width=340):
            answer = gr.Label(num_top_classes=10, label="Probability", visible=False)
            wrong = gr.HTML(apply_default_css=False, js_on_load=None)

    def classify(picture: str | None, sound: str | None, labels: str, template: str) -> tuple[Any, Any]:
        shares: dict[str, float] = {}

        def run() -> str:
            if (picture is None) == (sound is None):
                raise UserError("give a picture, or a sound")
            name, modality = ("the picture", "image") if picture is not None else ("the sound", "audio")
            asked = _asked(service, name, modality, picture or sound)
            text = checked_text(labels or "", "the labels", service.limits)
            shares.update(service.classify(asked, text.replace("\n", ",").split(","), _filled(template)))
            return ""

        said = _guarded(run)
        return gr.Label(shares or None, visible=bool(shares)), said

    gr.on(
        [go.click, labels.submit, template.submit],
        classify,
        [picture, sound, labels, template],
        [answer, wrong],
        api_visibility="private",
        show_progress="minimal",
    )
