"""The reader of ETTh1: every suffix and place, and every way a file can be wrong."""

import pytest
import torch

from lo_framework.optimizees import make_tasks
from lo_framework.optimizees.datasets import ett
from lo_framework.spec import UserError
from tests.optimizees.datasets.files import PACK, ett_csv, write

HOURS = 300
NAME = "ETTh1.csv"


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(ett, "ROWS", HOURS)


def fails(folder):
    before = sorted(folder.rglob("*"))
    with pytest.raises(UserError) as error:
        make_tasks("ett:size=tiny", data_dir=folder)
    assert len(str(error.value).splitlines()) == 1
    assert sorted(folder.rglob("*")) == before  # nothing is left behind
    return str(error.value)


@pytest.mark.parametrize("suffix", list(PACK))
@pytest.mark.parametrize("place", ["", "ETT-small"])
def test_every_suffix_and_place(tmp_path, suffix, place):
    data, values = ett_csv(HOURS)
    write(tmp_path / place, {NAME: data}, suffix)
    assert torch.equal(ett.load_etth1(str(tmp_path)), values)


def test_lines_may_end_as_on_windows(tmp_path):
    data, values = ett_csv(HOURS)
    write(tmp_path, {NAME: data.replace(b"\n", b"\r\n")})
    assert torch.equal(ett.load_etth1(str(tmp_path)), values)


def line(data, number, change):
    lines = data.split(b"\n")
    lines[number - 1] = change(lines[number - 1])
    return b"\n".join(lines)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: b"", "expected the CSV of ETTh1, with the header date,HUFL"),
        (lambda d: d.replace(b"OT", b"WT", 1), "expected the CSV of ETTh1, with the header date,"),
        (lambda d: d[:-30], "line 301: expected a date and 7 numbers, found"),
        (lambda d: d[: d.rindex(b"2016")], "expected 300 hours, found 299"),
        (lambda d: line(d, 9, lambda x: x + b",1"), "line 9: expected a date and 7 numbers"),
        (lambda d: line(d, 9, lambda x: x[:19] + b",1"), "line 9: expected a date and 7 numbers"),
        (lambda d: line(d, 9, lambda x: x[:20] + b"x" + x[21:]), "line 9: expected a date and 7"),
        (lambda d: line(d, 9, lambda x: x[:20] + b"nan" + x[27:]), "line 9: expected a date and 7"),
        (lambda d: line(d, 9, lambda x: b"some day" + x[19:]), "line 9: expected a date and 7"),
        (lambda d: line(d, 9, lambda x: b""), "line 9: expected a date and 7 numbers, found"),
        (
            lambda d: line(d, 9, lambda x: b"2016-07-01 09:00:00" + x[19:]),
            "line 9: expected the hour after 2016-07-01 06:00:00, found 2016-07-01 09:00:00",
        ),
        (lambda d: d + b"\xff", "expected text in UTF-8"),
    ],
)
def test_what_is_no_such_file(tmp_path, change, words):
    write(tmp_path / "ETT-small", {NAME: change(ett_csv(HOURS)[0])})
    message = fails(tmp_path)
    assert words in message
    assert str(tmp_path / "ETT-small" / NAME) in message


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_truncated_compression(tmp_path, suffix):
    write(tmp_path, {NAME: ett_csv(HOURS)[0]}, suffix)
    path = tmp_path / (NAME + suffix)
    path.write_bytes(path.read_bytes()[:-200])
    message = fails(tmp_path)
    assert f"{path}: truncated or broken after" in message


def test_a_file_that_never_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(ett, "_MOST", 4000)
    write(tmp_path, {NAME: ett_csv(HOURS)[0]})
    assert "expected at most 4,000 bytes of text, found more" in fails(tmp_path)


def test_a_missing_file_is_named_with_the_places(tmp_path):
    message = fails(tmp_path)
    assert f"missing {NAME} (plain, .gz or .xz)" in message
    assert f"looked in {tmp_path / 'ETT-small'}, {tmp_path}" in message
    with pytest.raises(UserError, match="does not exist"):
        make_tasks("ett", data_dir=tmp_path / "nowhere")


def test_the_folder_of_the_environment(tmp_path, monkeypatch):
    monkeypatch.setattr("lo_framework.optimizees.forecasting.MONTH", 15)
    write(tmp_path, {NAME: ett_csv(HOURS)[0]})
    monkeypatch.setenv("LO_DATA_DIR", str(tmp_path))
    (task,) = make_tasks("ett:size=tiny,window=8,horizon=4")
    assert task.name == "ett:size=tiny,window=8,horizon=4"


def test_the_published_file(data_dir, monkeypatch):
    monkeypatch.setattr(ett, "ROWS", 17_420)
    values = ett.load_etth1(str(data_dir))
    assert values.shape == (17_420, 7)
    assert values[0].tolist() == pytest.approx([5.827, 2.009, 1.599, 0.462, 4.203, 1.340, 30.531])
