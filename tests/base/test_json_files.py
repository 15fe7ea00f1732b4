"""Untrusted JSON: an object, or an error of a known kind."""

from pathlib import Path

import pytest

from dtl.base.json_files import (
    as_list,
    as_number,
    as_object,
    as_whole,
    json_object_or_empty,
    read_foreign_json,
    read_json,
    read_json_or_empty,
)
from dtl.errors import CheckpointError, DataError


@pytest.mark.parametrize(
    ("text", "own", "foreign"),
    [
        (b"[1]", "damaged, not a JSON object.", "holds a list, expected an object."),
        (b"[" * 100_000, "damaged, not JSON (", "cannot be read as JSON ("),
        (b'{"a": "\xff"}', "damaged, not JSON (", "cannot be read as JSON ("),
        (b'{"a', "damaged, not JSON (", "cannot be read as JSON ("),
        (None, "", "cannot be read (No such file"),
    ],
)
def test_what_is_no_object_is_refused(tmp_path: Path, text, own, foreign):
    file = tmp_path / "a.json"
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(CheckpointError if text is not None else FileNotFoundError) as refused:
        read_json(file)
    assert text is None or str(refused.value).startswith(f"{file}: {own}")
    for error in (CheckpointError, DataError):
        with pytest.raises(error) as refused:
            read_foreign_json(file, error)
        assert type(refused.value) is error and str(refused.value).startswith(f"{file}: {foreign}")
    assert read_json_or_empty(file) == json_object_or_empty(text or b"") == {}


def test_nan_is_foreign(tmp_path: Path):
    file = tmp_path / "a.json"
    file.write_text('{"a": NaN, "b": 17}')
    with pytest.raises(CheckpointError, match="NaN is not a number"):
        read_json(file)
    assert read_foreign_json(file, DataError)["b"] == json_object_or_empty(file.read_text())["b"] == 17


@pytest.mark.parametrize(
    ("value", "whole", "number"),
    [
        (17, 17, 17.0),
        (0.5, None, 0.5),
        (True, None, None),
        (2**63, None, None),
        (10**400, None, None),
        (float("nan"), None, None),
        (float("inf"), None, None),
        ("17", None, None),
        (None, None, None),
    ],
)
def test_values_of_unknown_type(value, whole, number):
    assert as_whole(value) == whole and as_number(value) == number
    assert as_list(value) == [] and as_object(value) == {}


def test_lists_and_objects_stay():
    assert as_list([17]) == [17] and as_object({"a": 17}) == {"a": 17}
