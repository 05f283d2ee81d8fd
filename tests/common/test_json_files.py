"""What is said about damaged JSON files: the file, the field, what is wrong, what to do."""

from dataclasses import dataclass, field

import pytest

from directdet.common import json_files
from directdet.common.errors import UserError
from directdet.common.json_files import read_json, read_json_lines
from directdet.common.settings import Count, SettingError, check_value


@dataclass(frozen=True)
class Kind:
    steps: dict[str, dict[str, Count]]
    name: str
    rates: tuple[float, ...] = ()
    best: float | None = None
    more: dict = field(default_factory=dict)


GOOD = '{"name": "a", "steps": {"row": {"pretrain": 3}}, "rates": [1, 2.5], "other": [1]}'


def test_a_good_file_is_read(tmp_path):
    path = tmp_path / "plan.json"
    path.write_text(GOOD)
    content, found = read_json(path, Kind, "restore it")
    assert found == Kind({"row": {"pretrain": 3}}, "a", (1, 2.5)) and content["other"] == [1]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "is damaged: not JSON"),
        (GOOD[:20], "is damaged: not JSON"),
        ("[1]", "is damaged: not a JSON object"),
        ("\ufeff" + GOOD, "is damaged: not JSON"),
        ('{"steps": 1' + "0" * 5000 + "}", "is damaged: not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ('{"name": "a"}', "steps: is missing"),
        (GOOD.replace('"a"', "3"), "name: 3 is not a word"),
        (GOOD.replace('{"row"', '[{"row"').replace("}}", "}}]"), "steps: "),
        (GOOD.replace('{"pretrain": 3}', "7"), "steps.row: 7 is not a table of whole numbers"),
        (GOOD.replace("3", '"3"'), "steps.row.pretrain: '3' is not a whole number"),
        (GOOD.replace("3", "0"), "steps.row.pretrain: 0 is not at least 1"),
        (GOOD.replace("3", "1" + "0" * 400), "steps.row.pretrain: a number of some 443 digits is not at least 1"),
        (GOOD.replace("2.5", "true"), "rates: True is not a number"),
        (GOOD.replace('"a"', '"' + "\\u001b" * 500 + '", "best": "' + "x" * 500 + '"'), "best: 'xxx"),
    ],
)
def test_a_damaged_file_is_told_in_one_short_line(tmp_path, content, says):
    path = tmp_path / "plan.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=r"plan\.json: .*; restore it$") as caught:
        read_json(path, Kind, "restore it")
    assert says in str(caught.value) and "\n" not in str(caught.value)
    assert len(str(caught.value)) < len(str(path)) + 300


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"cannot be read: No such file or directory; restore it"):
        read_json(tmp_path / "none.json", Kind, "restore it")
    (tmp_path / "a.json").write_bytes(b'{"name": "\xff"}')
    with pytest.raises(UserError, match="not JSON"):
        read_json(tmp_path / "a.json", Kind, "restore it")
    monkeypatch.setattr(json_files, "MOST_BYTES", 2**20)
    (tmp_path / "a.json").write_bytes(b'"' + b"x" * 2**20)
    with pytest.raises(UserError, match="larger than 1 MiB"):
        read_json(tmp_path / "a.json", Kind, "restore it")
    with pytest.raises(UserError, match=r"a\.json: line 1: larger than 1 MiB"):
        list(read_json_lines(tmp_path / "a.json", "remove it"))


def test_lines_end_before_what_a_killed_process_left(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n{"a": 3}')
    assert [(number, value["a"]) for number, _, value in read_json_lines(path, "")] == [(1, 1), (2, 2)]
    path.write_text('{"a": 1}\nnothing\n{"a": 3}\n')
    with pytest.raises(UserError, match=r"log\.jsonl: line 2: is damaged: not JSON .*; remove the line"):
        list(read_json_lines(path, "remove the line"))


@pytest.mark.parametrize("value", [10**400, -(10**400)])
def test_a_number_that_no_float_holds_is_a_setting_error(value):
    with pytest.raises(SettingError, match="epochs: a number of some 443 digits is not"):
        check_value("epochs", value, Count)
