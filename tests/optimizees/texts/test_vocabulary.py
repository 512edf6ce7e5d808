"""Vocabularies: which words, in which order, and the cache under a digest."""

from __future__ import annotations

import json
import os

import pooch
import pytest

from lo_framework.optimizees.datasets import vocabulary as module
from lo_framework.optimizees.datasets.vocabulary import Rules, vocabulary
from lo_framework.spec import UserError

LINES = [" b a b <unk> c", "a b d d d <unk> <unk>", "e"]


def words(rules, lines=LINES):
    made = vocabulary(lines, rules)
    return made.decode(range(len(made)))


def test_the_most_frequent_words_come_first_and_ties_by_name():
    assert words(Rules(size=99)) == ["<pad>", "<unk>", "b", "d", "a", "c", "e"]
    assert words(Rules(size=4)) == ["<pad>", "<unk>", "b", "d"]
    assert words(Rules(size=99, least=2)) == ["<pad>", "<unk>", "b", "d", "a"]


def test_numbers_of_words():
    made = vocabulary(LINES, Rules(size=5))
    assert made.encode(["b <unk> z a", "", "  d "]) == [[2, 1, 1, 4], [], [3]]
    assert made.stream(["b d", "a"]).tolist() == [2, 3, 4]


def test_basic_english_is_that_of_torchtext():
    text = ['It\'s "A" film.<br />So, (see) it! Why? x;y:z']
    made = vocabulary(text, Rules(size=99, words="basic_english"))
    assert " ".join(made.decode(made.encode(text)[0])) == (
        "it ' s a film . so , ( see ) it ! why ? x y z"
    )


def test_it_is_cached_under_a_digest_of_text_and_rules(tmp_path, monkeypatch):
    made = vocabulary(LINES, Rules(size=9))
    folder = tmp_path / "cache" / "vocabularies"
    assert [path.name for path in folder.iterdir()] == [f"{made.digest}.json"]
    others = [vocabulary(LINES, Rules(size=8)), vocabulary([*LINES, "e"], Rules(size=9))]
    digests = {made.digest, *(other.digest for other in others)}
    assert {path.stem for path in folder.iterdir()} == digests and len(digests) == 3
    monkeypatch.setattr(module, "_built", None)  # it is not built again
    again = vocabulary(LINES, Rules(size=9))
    assert again.digest == made.digest
    assert again.encode(LINES) == made.encode(LINES)


def changed(text):
    held = json.loads(text)
    held["tokenizer"] = held["tokenizer"].replace('"b"', '"x"')
    return json.dumps(held)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace('"digest": "', '"digest": "0'), "it is of digest 0"),
        (changed, "its content was changed"),
        (lambda text: text[: len(text) // 2], "it cannot be read"),
        (lambda text: "[]", "it cannot be read"),
        (lambda text: '{"digest": 3, "tokenizer": 4}', "it cannot be read"),
    ],
)
def test_a_vocabulary_of_another_digest_is_refused(tmp_path, change, words):
    made = vocabulary(LINES, Rules(size=9))
    path = tmp_path / "cache" / "vocabularies" / f"{made.digest}.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(UserError) as error:
        vocabulary(LINES, Rules(size=9))
    line = str(error.value)
    assert line.startswith(f"{path}: expected the vocabulary of digest {made.digest}")
    assert words in line and line.endswith("delete it, and it is built again")
    assert "\n" not in line
    path.unlink()
    assert vocabulary(LINES, Rules(size=9)).digest == made.digest


def test_without_a_place_to_write_it_is_built(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "file")
    assert len(vocabulary(LINES, Rules(size=9))) == 7
    assert (tmp_path / "file").read_text() == ""


def test_the_librarys_threads_are_off_while_it_works_alone(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    with module._alone():
        assert os.environ["TOKENIZERS_PARALLELISM"] == "false"
    assert os.environ["TOKENIZERS_PARALLELISM"] == "true"
    monkeypatch.delenv("TOKENIZERS_PARALLELISM")
    vocabulary(LINES, Rules(size=9))
    assert "TOKENIZERS_PARALLELISM" not in os.environ
