"""scripts/slurm_coco.sh, run with stand-ins for Slurm's commands, torchrun and directdet that write down how they were
called: what they are given is taken by the command line."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from torch.distributed.run import parse_args

from directdet.front.cli import add_verbs, directdet

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "slurm_coco.sh"
STUB = """#!{python}
import json, sys
from pathlib import Path
with open({calls!r}, "a") as file:
    file.write(json.dumps([Path(sys.argv[0]).name, *sys.argv[1:]]) + "\\n")
"""
COMMANDS = {"torchrun": "sys.exit({code})", "directdet": "", "scontrol": "print('node1\\nnode2')"}


@pytest.fixture
def job(tmp_path):
    """Runs the script as a job; returns its exit code and the calls that it made."""

    def run(code: int = 0, **variables: str) -> tuple[int, list[list[str]]]:
        calls, places = tmp_path / "calls", tmp_path / "bin"
        calls.write_text("")
        places.mkdir(exist_ok=True)
        for name, end in COMMANDS.items():
            text = STUB.format(python=sys.executable, calls=str(calls)) + end.format(code=code)
            (places / name).write_text(text)
            (places / name).chmod(0o755)
        (places / "srun").write_text('#!/bin/bash\nshift\nexec "$@"\n')
        (places / "srun").chmod(0o755)
        given = {"DATA": str(tmp_path / "coco"), "RUN": str(tmp_path / "run"), "PATH": f"{places}:{os.environ['PATH']}"}
        given |= {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[1-2]", **variables}
        done = subprocess.run(["bash", SCRIPT], env=given, capture_output=True, text=True, check=False)
        assert "not found" not in done.stderr, done.stderr
        return done.returncode, [json.loads(line) for line in calls.read_text().splitlines()]

    return run


def taken(words: list[str]) -> click.Context:
    """What directdet makes of a command line; click.UsageError if it does not take it."""
    add_verbs(directdet)
    with click.Context(directdet) as above:
        name, command, rest = directdet.resolve_command(above, list(words))
        assert command is not None
        return command.make_context(name, rest, parent=above)


def trained(calls: list[list[str]]) -> tuple[object, click.Context]:
    """What torchrun makes of its options, and directdet of what torchrun runs."""
    words = next(call[1:] for call in calls if call[0] == "torchrun")
    options = parse_args(words)
    assert options.module and options.training_script == "directdet"
    return options, taken(options.training_script_args)


def test_bash_reads_it():
    assert subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0


def test_a_job_trains_and_ends_with_the_table(job, tmp_path):
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "annotations" / "image_info_test-dev2017.json").write_text("{}")
    code, calls = job(SLURM_NNODES="2")
    assert code == 0
    options, train = trained(calls)
    assert (options.nnodes, options.nproc_per_node, options.rdzv_endpoint) == ("2", "8", "node1:29500")
    assert (train.params["recipe"], train.params["resume"]) == ("mask_rcnn_r50_fpn", False)
    assert train.params["out"] == tmp_path / "run"
    verbs = [taken(call[1:]).info_name for call in calls if call[0] == "directdet"]
    assert verbs == ["eval", "export", "benchmark", "submit"]


def test_a_job_without_the_test_set_submits_nothing(job):
    code, calls = job()
    assert code == 0 and [call[1] for call in calls if call[0] == "directdet"] == ["eval", "export", "benchmark"]


@pytest.mark.parametrize("phase", ["pretrain", "scratch"])
def test_a_job_that_is_run_again_goes_on(job, tmp_path, phase):
    (tmp_path / "run" / phase).mkdir(parents=True)
    (tmp_path / "run" / phase / "run.json").write_text("{}")
    _, calls = job(RECIPE="ssd300_root_resnet34_coco", GPUS="4")
    options, train = trained(calls)
    assert train.params["resume"] and train.params["recipe"] == "ssd300_root_resnet34_coco"
    assert options.nproc_per_node == "4"


@pytest.mark.parametrize(("left", "requeued"), [(100, True), (7200, False)])
def test_only_a_job_whose_time_is_up_is_queued_again(job, left, requeued):
    code, calls = job(code=1, SLURM_JOB_END_TIME=str(int(time.time()) + left))
    assert ["scontrol", "requeue", "7"] in calls if requeued else ["scontrol", "requeue", "7"] not in calls
    assert code == (0 if requeued else 1) and not [call for call in calls if call[0] == "directdet"]


def test_a_job_that_failed_on_a_slurm_that_does_not_tell_the_end_is_not_queued_again(job):
    code, calls = job(code=1)
    assert code == 1 and ["scontrol", "requeue", "7"] not in calls


def test_the_folders_have_to_be_said(job):
    code, calls = job(DATA="")
    assert code != 0 and not calls
