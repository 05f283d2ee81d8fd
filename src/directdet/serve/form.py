"""The page at the server's root: what the model is, and a form to try it with."""

from collections.abc import Sequence
from pathlib import Path

from directdet.infer.predict.options import Selection
from directdet.infer.predictor import Predictor
from directdet.pages.page import about, document

SHOWN = 30  # classes; /health has all

_FORM = """<form method="post" action="/draw" enctype="multipart/form-data">
<p><label>Picture<br><input type="file" name="file" accept="image/*" required></label></p>
<p><button>Draw what is found</button><button formaction="/detect">As JSON</button></p></form>"""
_PATHS = """<p class="note" style="margin-top: 2rem">Programs post a picture's bytes to <code>/detect</code> or
<code>/draw</code>; <a href="/health">/health</a>, <a href="/metrics">/metrics</a> and
<a href="/openapi.json">/openapi.json</a> tell about the server.</p>"""


def form_page(detector: Predictor, score: float | Sequence[float]) -> str:
    """The page as HTML text, which loads no other files; `score` is the least that is kept unless a request asks, one
    for all classes or one for each."""
    height, width = detector.preprocess.size
    names, count = detector.classes[:SHOWN], len(detector.classes)
    facts = {
        "Finds": ", ".join(names) + (f" and {count - SHOWN} more" if count > SHOWN else ""),
        "Keeps": f"scores of at least {Selection(score).words(detector.classes)}; another with ?score=",
        "Runs in": f"{detector.runtime}; pictures are scaled to {height} x {width} pixels (height x width) at most",
    }
    title = Path(detector.source).name
    return document(title, "An object detector, served by directdet", [], [_FORM, about(facts), _PATHS])
