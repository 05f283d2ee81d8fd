"""The atomic writers and UserError, which every room uses."""

import json
import os
import pickle

import pytest

from directdet.common.errors import UserError
from directdet.common.files import write_bytes_atomic, write_json_atomic, write_text_atomic
from directdet.data.formats.values import path_inside


def test_writes_and_replaces_without_leftovers(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json_atomic(path, {"é": [1]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"é": [1]}
    write_text_atomic(path, "two\n")
    write_bytes_atomic(path, b"three")
    assert path.read_bytes() == b"three"
    assert os.listdir(path.parent) == ["a.json"]


def test_failure_keeps_the_old_file(tmp_path, monkeypatch):
    path = write_text_atomic(tmp_path / "a.txt", "old")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match=r"a\.txt: cannot be written: No space left"):
        write_text_atomic(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]
    with pytest.raises(ValueError, match="JSON"):
        write_json_atomic(path, float("nan"))


def test_folder_in_the_way(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_text_atomic(tmp_path / "file" / "a.txt", "")


def test_new_files_have_ordinary_rights(tmp_path):
    (tmp_path / "plain").touch()
    written = write_text_atomic(tmp_path / "a", "")
    assert written.stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_user_error_survives_pickling():
    error = pickle.loads(pickle.dumps(UserError("a.jpg: broken")))
    assert isinstance(error, UserError) and str(error) == "a.jpg: broken" and error.exit_code == 1


@pytest.mark.parametrize("name", ["", " ", "a\0b", 7, None])
def test_what_is_no_name_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"source: .* is not a file name"):
        path_inside(tmp_path, name, "source")


def test_a_name_of_255_bytes_and_one_that_is_not_utf_8_are_names(tmp_path):
    assert path_inside(tmp_path, "é" * 127 + "x", "source") == tmp_path / ("é" * 127 + "x")
    assert path_inside(tmp_path, "a\udcff.jpg", "source") == tmp_path / "a\udcff.jpg"
