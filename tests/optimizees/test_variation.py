"""Ranges in specs, and families whose tasks are drawn."""

import math

import pytest
import torch

from lo_framework.optimizees import make_tasks, make_variations
from lo_framework.optimizees.models import CNNConfig, MLPConfig
from lo_framework.optimizees.ranges import Ranged, Span
from lo_framework.spec import UserError, parse_spec


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def ranged(text, config=MLPConfig):
    name, options = parse_spec(text)
    return Ranged.of(name, config, options)


def draws(text, count, config=MLPConfig):
    generator, spec = seeded(), ranged(text, config)
    return [spec.draw(generator) for _ in range(count)]


def test_whole_numbers_cover_their_range_log_uniformly():
    seen = [config.hidden[0] for config in draws("mlp:hidden=8..128", 4000)]
    assert min(seen) == 8 and max(seen) == 128
    for low, high in ((8, 15), (16, 31), (32, 63), (64, 128)):
        share = sum(low <= x <= high for x in seen) / 4000
        expected = math.log((high + 1) / low) / math.log(129 / 8)
        assert share == pytest.approx(expected, abs=0.03)


def test_other_numbers_are_log_uniform_or_uniform_from_zero():
    generator = seeded()
    seen = [float(Span(0.01, 1.0).draw(generator)) for _ in range(2000)]
    assert 0.01 <= min(seen) < 0.0105 and 0.95 < max(seen) <= 1
    assert sum(x < 0.1 for x in seen) / 2000 == pytest.approx(0.5, abs=0.04)
    seen = [float(Span(0.0, 1.0).draw(generator)) for _ in range(2000)]
    assert sum(x < 0.5 for x in seen) / 2000 == pytest.approx(0.5, abs=0.04)
    assert {Span(0, 2).draw(generator) for _ in range(50)} == {"0", "1", "2"}
    assert {Span(-1, 1).draw(generator) for _ in range(50)} == {"-1", "0", "1"}


def test_every_layer_has_a_width_of_its_own():
    configs = draws("mlp:hidden=8..128,layers=1..4", 400)
    assert {len(config.hidden) for config in configs} == {1, 2, 3, 4}
    assert all(config.layers is None for config in configs)
    assert sum(len(set(c.hidden)) == len(c.hidden) for c in configs) > 350
    assert {len(c.hidden) for c in draws("mlp:hidden=8..128,layers=3", 5)} == {3}
    assert {c.hidden for c in draws("mlp:layers=1..2", 40)} == {(32,), (32, 32)}
    assert {len(c.channels) for c in draws("cnn:channels=4..32,blocks=1..3", 99, CNNConfig)} == {
        1,
        2,
        3,
    }


def test_a_choice_written_twice_is_drawn_twice_as_often():
    acts = [config.act for config in draws("mlp:act=relu|relu|gelu", 3000)]
    assert set(acts) == {"relu", "gelu"}
    assert acts.count("relu") / 3000 == pytest.approx(2 / 3, abs=0.04)


def test_choices_may_be_ranges_and_lists():
    hidden = {c.hidden for c in draws("mlp:hidden=none|16x16|8..9x64", 100)}
    assert hidden == {(), (16, 16), (8, 64), (9, 64)}


def test_layers_repeat_one_width():
    assert MLPConfig(hidden=(64,), layers=3) == MLPConfig(hidden=(64, 64, 64))
    assert MLPConfig(hidden=(64, 8), layers=2) == MLPConfig(hidden=(64, 8))
    (task,) = make_tasks("mlp:hidden=8,layers=2")
    assert task.name == "mlp:hidden=8x8/digits"
    with pytest.raises(UserError, match="layers=3 repeats one entry of hidden, which has 2"):
        make_tasks("mlp:hidden=8x8,layers=3")


def test_the_name_of_a_family_is_canonical_and_names_the_same_family():
    (family,) = make_variations("mlp:layers=1..4,act=sigmoid,batch=16..256,hidden=8..128")
    assert family.name == "mlp:hidden=8..128,layers=1..4,batch=16..256/digits"
    (again,) = make_variations(family.name.removesuffix("/digits"))
    assert again.name == family.name and not family.is_fixed
    assert family.named().name == "mlp/digits"


def test_a_bare_name_is_its_usual_variation():
    usual, plain = make_variations("mlp")[0], make_variations("mlp", vary="none")[0]
    assert "hidden=8..128" in usual.name and not usual.is_fixed
    assert plain.name == plain.named().name == plain.draw(seeded()).name == "mlp/digits"
    assert plain.is_fixed
    named = make_variations("mlp:hidden=32x32")[0]
    assert named.is_fixed and named.name == "mlp:hidden=32x32/digits"


def test_draws_are_those_of_the_generator():
    families = make_variations("mlp,cnn,transformer,quadratic:dim=2..9")
    first, again = seeded(3), seeded(3)
    names = [f.draw(first).name for f in families for _ in range(5)]
    assert names == [f.draw(again).name for f in families for _ in range(5)]
    assert len(set(names)) >= 18
    for name in names:  # a drawn task is the one that its name builds
        spec, _, dataset = name.partition("/")
        assert make_tasks(spec, dataset or "digits")[0].name == name


def test_values_that_do_not_go_together_are_drawn_again():
    (family,) = make_variations("transformer:width=16..40,heads=2|4")
    generator = seeded()
    configs = [family.optimizee.draw(generator) for _ in range(60)]
    assert all(config.width % config.heads == 0 for config in configs)
    (family,) = make_variations("cnn:channels=4,blocks=1..5")
    assert {family.draw(generator).name.count("x") for _ in range(20)} == {0, 1, 2}


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (
            "mlp:hidden=128..8",
            'mlp: option hidden="128..8": the range is reversed: expected 8..128',
        ),
        ("mlp:hidden=8..", 'option hidden="8..": the range "8.." is empty: expected low..high'),
        ("mlp:hidden=..8", 'the range "..8" is empty'),
        ("mlp:hidden=0..8", "at least 1"),
        ("mlp:hidden=8..99999999", "at most 65536"),
        ("mlp:hidden=a..b", "expected a whole number"),
        ("mlp:batch=1.5..4", "expected a whole number"),
        ("mlp:act=relu|gleu", '(did you mean "gelu"?)'),
        ("mlp:act=relu|", "a choice between | is empty"),
        ("mlp:act=relu..tanh", "a range is of numbers: write choices with |"),
        ("mlp:hiden=8..128", '(did you mean "hidden"?)'),
        ("mpl", '(did you mean "mlp"?)'),
        ("cnn:channels=4..8,blocks=4..5", "below one pixel"),
        ("transformer:width=5..5,heads=2|4", "must be a multiple of heads"),
        ("mlp,mlp", "given twice"),
    ],
)
def test_bad_ranges(spec, words):
    with pytest.raises(UserError) as error:
        make_variations(spec)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_an_unknown_way_to_vary():
    with pytest.raises(UserError, match='unknown variation "usul" .*did you mean "usual"'):
        make_variations("mlp", vary="usul")
