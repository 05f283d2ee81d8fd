"""A small detector's checkpoint and its artefact, exported once for all tests."""

import pytest
from export_helpers import conditioned_checkpoint

from directdet.export.options import ExportOptions
from directdet.export.run import export


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "model.pt"
    conditioned_checkpoint(path)
    return path


@pytest.fixture(scope="session")
def exported(checkpoint):
    return export(checkpoint, checkpoint.parent / "artefact")


@pytest.fixture(scope="session")
def dynamic(checkpoint):
    """With a batch of one to four images."""
    return export(checkpoint, checkpoint.parent / "dynamic", ExportOptions(batch="1,2,4"))
