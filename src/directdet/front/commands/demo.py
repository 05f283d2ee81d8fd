"""The verb that shows the whole chain: demo."""

from __future__ import annotations

from pathlib import Path

import click

from directdet.front.options import PATH, print_failures, torch_device_option


@click.command("demo")
@click.option("--out", type=PATH, default="directdet-demo", show_default=True, metavar="DIR", help="Folder to write.")
@torch_device_option
def demo(out: Path, device: str) -> int:
    """Run the whole chain on a made-up dataset, with a report.

    Train, export, verify, benchmark; about five minutes on two CPU cores, and no files are needed.
    """
    from directdet.common.folder_lock import hold_folder
    from directdet.front.demo import run_demo

    with hold_folder(out, "demo", beside=True):
        result = run_demo(out, device=device)
    print_failures(result.failures)
    return result.exit_code
