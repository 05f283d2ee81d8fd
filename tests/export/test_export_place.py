"""Putting an artefact in its place, also after exports that were killed."""

import os

import pytest

from directdet.export import artefact
from directdet.export.artefact import put_in_place, working_folders


def folder(path, text):
    path.mkdir(parents=True)
    (path / "meta.json").write_text(text)
    return path


@pytest.mark.parametrize("exchange", [True, False])
def test_an_artefact_replaces_another(tmp_path, monkeypatch, exchange):
    if not exchange:
        monkeypatch.setattr(artefact, "_exchange", lambda *_: False)
    out = folder(tmp_path / "out", "old")
    with working_folders(out) as (part, _):
        (part / "meta.json").write_text("new")
        put_in_place(part, out)
    assert (out / "meta.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.skipif(not os.path.exists("/proc/self"), reason="only Linux exchanges folders at once")
def test_there_is_no_moment_without_an_artefact(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("two renames"))
    part, out = folder(tmp_path / "part", "new"), folder(tmp_path / "out", "old")
    put_in_place(part, out)
    assert (out / "meta.json").read_text() == "new" and (part / "meta.json").read_text() == "old"


@pytest.mark.parametrize("moved", [True, False])
def test_what_killed_exports_left_is_removed_and_an_artefact_between_two_renames_is_back(tmp_path, moved):
    out = tmp_path / "out"
    old = folder(tmp_path / ".out.directdet-abc.old", "old")
    folder(tmp_path / ".out.directdet-abc", "half")
    folder(tmp_path / ".out.directdet-def" / "deep", "half")
    folder(tmp_path / ".out.backup", "of the user")
    folder(tmp_path / ".outer.directdet-abc", "of another artefact")
    if not moved:
        folder(out, "new")
    with working_folders(out) as made:
        assert (out / "meta.json").read_text() == ("old" if moved else "new")
        assert not old.exists()
        assert all(path.is_dir() and path.parent == tmp_path for path in made)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.backup", ".outer.directdet-abc", "out"]
