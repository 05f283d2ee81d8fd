"""The verb that puts a model behind HTTP: serve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from directdet.front.options import (
    PATH,
    Number,
    code_option,
    device_option,
    precision_option,
    runtime_option,
    score_option,
    threads_option,
)
from directdet.front.say import say


@click.command("serve")
@click.argument("model", type=PATH)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on; 0.0.0.0: every one.")
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True, help="0: a free one.")
@score_option
@click.option("--batch", type=click.IntRange(min=1), help="Most pictures a run.  [default: the model's own, or 1]")
@click.option("--wait-ms", type=Number(0), default=2.0, show_default=True, help="How long a batch waits for more.")
@click.option("--queue", type=click.IntRange(min=1), default=128, show_default=True, help="Most requests at once.")
@click.option("--max-bytes", type=click.IntRange(min=1), default=20_000_000, show_default=True, help="Of an upload.")
@click.option("--max-pixels", type=click.IntRange(min=1), default=50_000_000, show_default=True, help="Of a picture.")
@runtime_option
@device_option
@threads_option
@precision_option
@code_option
def serve(model: Path, host: str, port: int, **settings: Any) -> None:
    """Answer uploads of pictures over HTTP.

    POST a picture to /detect for JSON, or to /draw for the drawn picture; /health and /metrics (Prometheus) tell about
    the server, and / is a form to try it. What is too much is refused: 413 for a picture, 503 for a request. Ctrl-C and
    SIGTERM let the requests that were begun end. It has no encryption and no passwords: keep it behind something that
    has. Needs the extra `serve`.
    """
    from directdet.infer.runtimes.load import load
    from directdet.serve.options import ServeOptions
    from directdet.serve.run import require_libraries
    from directdet.serve.run import serve as run

    loading = {name: settings.pop(name) for name in ("runtime", "device", "threads", "precision")}
    options = ServeOptions(**settings)
    require_libraries()  # before a model is loaded for nothing
    run(load(model, **loading), options, host, port, say)
