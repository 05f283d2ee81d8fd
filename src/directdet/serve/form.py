"""The page at the server's root: what the model is, and a form to try it with."""

from pathlib import Path

from directdet.infer.predictor import Predictor
from directdet.pages.page import safe
from directdet.pages.style import CSS

SHOWN = 30  # classes; /health has all


def form_page(detector: Predictor, score: float) -> str:
    """The page as HTML text, which loads no other files; `score` is the least that is kept unless a request asks."""
    height, width = detector.preprocess.size
    names, count = detector.classes[:SHOWN], len(detector.classes)
    more = f" and {count - SHOWN} more" if count > SHOWN else ""
    about = {
        "Finds": ", ".join(names) + more,
        "Keeps": f"scores of at least {score:g}; another with ?score=",
        "Runs in": f"{detector.runtime}; pictures are scaled to {height} x {width} pixels (height x width) at most",
    }
    rows = "".join(f"<dt>{safe(name)}</dt><dd>{safe(text)}</dd>" for name, text in about.items())
    title = safe(Path(detector.source).name)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><title>{title}</title><style>{CSS}
a {{ color: var(--first); }} button, input {{ font: inherit; }} button {{ margin: 0 .6rem .6rem 0; }}
form {{ margin: 2rem 0; }}</style></head>
<body><main><header><h1>{title}</h1><p>An object detector, served by directdet</p></header>
<form method="post" action="/draw" enctype="multipart/form-data">
<p><label>Picture<br><input type="file" name="file" accept="image/*" required></label></p>
<p><button>Draw what is found</button><button formaction="/detect">As JSON</button></p></form>
<dl class="about">{rows}</dl>
<p class="note" style="margin-top: 2rem">Programs post a picture's bytes to <code>/detect</code> or <code>/draw</code>;
<a href="/health">/health</a>, <a href="/metrics">/metrics</a> and <a href="/openapi.json">/openapi.json</a> tell about
the server.</p></main></body></html>
"""
