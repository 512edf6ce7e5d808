"""Ranges in specs, and families whose tasks are drawn."""

import math

import pytest
import torch
from torch.func import grad, grad_and_value, vmap

from lo_framework.layout import POSITIONS, Layout
from lo_framework.optimizees import make_tasks, make_variations
from lo_framework.optimizees.datasets import DATASETS
from lo_framework.optimizees.models.cnn import CNNConfig
from lo_framework.optimizees.models.mlp import MLPConfig
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


def test_a_hundred_draws_are_finite_to_the_second_derivative():
    families = make_variations("mlp,mlp-relu,cnn,transformer", "digits,teacher")
    generator, targets = seeded(1), set()
    for i in range(100):
        task = families[i % len(families)].draw(generator)
        targets.add(type(task).__name__)
        inits = [task.init(generator)[0] for _ in range(2)]
        params = {name: torch.stack([p[name] for p in inits]) for name in inits[0]}
        batch, noise = task.batch("train", generator, (2,)), torch.arange(2)
        batch = tuple(x[:, :32] for x in batch)

        def score(p, rows, seed, task=task):
            return task.normalize(task.loss(p, {}, rows, seed)[0])

        def steepness(p, rows, seed, score=score):
            return sum((g**2).sum() for g in grad(score)(p, rows, seed).values())

        grads, value = vmap(grad_and_value(score))(params, batch, noise)
        seconds = vmap(grad(steepness))(params, batch, noise)
        assert torch.isfinite(value).all() and (value < 10).all(), task.name
        for name in params:
            assert torch.isfinite(grads[name]).all(), (task.name, name)
            assert torch.isfinite(seconds[name]).all(), (task.name, name)
        assert any(g.any() for g in grads.values()), task.name
    assert targets == {"ClassificationTask", "RegressionTask"}


@pytest.mark.parametrize(
    ("pool", "count", "expected"),
    [
        (
            "mlp,cnn",
            40,
            {
                *((role, place) for role in ("matrix", "conv", "bias") for place in POSITIONS),
                ("norm", "first"),  # a norm belongs to the layer before it: none to the last
                ("norm", "hidden"),
            },
        ),
        ("transformer", 3, {("embedding", "first")}),
    ],
)
def test_every_role_and_position_occurs_in_the_usual_pool(pool, count, expected):
    families, generator, seen = make_variations(pool), seeded(2), set()
    for _ in range(count):
        for family in families:
            params, _ = family.draw(generator).init(generator)
            slots = Layout.of({name: x.shape for name, x in params.items()}).slots
            seen |= {(slot.role, slot.position) for slot in slots}
    assert seen >= expected


def test_the_usual_pool_covers_what_meta_training_should_see():
    names = []
    for family in make_variations("mlp,cnn", "digits,teacher"):
        generator = seeded(4)
        names += [family.draw(generator).name for _ in range(60)]
    mlps = [name for name in names if name.startswith("mlp")]
    assert 0.15 < sum("residual=1" in name for name in mlps) / len(mlps) < 0.35
    for words in ("act=relu", "act=gelu", "act=tanh", "norm=layer", "init=torch", "zero_last=1"):
        assert sum(words in name for name in mlps) > 6, words
    for words in ("project=", "target=regress", "target=reconstruct", "noise=0.1", "norm=group"):
        assert sum(words in name for name in names) > 6, words
    assert not any(word in name for name in names for word in ("mnist", "cifar"))


def test_a_drawn_reconstruction_goes_through_a_narrow_code():
    spec = "mlp:hidden=30..128,layers=1..4"
    (family,) = make_variations(spec, "digits:target=reconstruct")
    generator = seeded()
    for _ in range(10):
        task = family.draw(generator)
        assert min(task.model.widths) == 8 and task.model.widths[-1] == 64
    (named,) = make_variations("mlp:hidden=64", "digits:target=reconstruct")
    assert named.draw(seeded()).model.widths == (64, 64, 64)


def test_data_that_are_for_judging_are_never_varied():
    specs = ["digits", "teacher", "mnist", "fashion_mnist", "cifar10"]
    varied = {spec for spec in specs if DATASETS[spec].facts["varied"]}
    assert varied == {"digits", "teacher"}


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


def test_data_sets_have_ranges_too():
    (family,) = make_variations("mlp:hidden=8", "digits:project=16..20")
    assert family.name == "mlp:hidden=8/digits:project=16..20"
    shapes = {family.draw(seeded(k)).model.widths[0] for k in range(30)}
    assert shapes == {16, 17, 18, 19, 20}
    assert family.named().name == "mlp:hidden=8/digits"
    with pytest.raises(UserError, match="cnn needs images"):
        make_variations("cnn:channels=4..8", "digits:project=16..20")
    with pytest.raises(UserError, match='project="20..16": the range is reversed'):
        make_variations("mlp", "digits:project=20..16")


def test_an_unknown_way_to_vary():
    with pytest.raises(UserError, match='unknown variation "usul" .*did you mean "usual"'):
        make_variations("mlp", vary="usul")


def test_what_a_family_covers_under_another_name():
    (family,) = make_variations("mlp:hidden=8..128,layers=1..4,act=tanh|relu")
    assert family.covers("mlp-relu:hidden=64x9", "digits")
    assert not family.covers("mlp-relu:hidden=256", "digits")
    assert not family.covers("mlp:hidden=64", "digits")  # sigmoid
    (family,) = make_variations("mlp-relu:hidden=8..128")
    assert family.covers("mlp:act=relu", "digits") and not family.covers("mlp", "digits")


@pytest.mark.parametrize(
    ("family", "inside", "outside"),
    [
        (
            "mlp",
            ("mlp", "mlp:hidden=64x9", "mlp:hidden=8,act=gelu,batch=256"),
            ("mlp:hidden=64x64x64x64x64", "mlp:hidden=129", "mlp:hidden=none", "mlp:batch=8"),
        ),
        ("mlp:hidden=64,layers=1..3", ("mlp:hidden=64x64",), ("mlp", "mlp:hidden=64x32")),
        (
            "mlp:hidden=8..16x8..16|none|32,batch=8",
            ("mlp:hidden=8x9,batch=8", "mlp:hidden=none,batch=8", "mlp:hidden=32,batch=8"),
            ("mlp:hidden=8x9", "mlp:hidden=8,batch=8", "mlp:hidden=8x9x9,batch=8"),
        ),
        ("mlp:hidden=16", ("mlp:hidden=16", "mlp:hidden=16,layers=1"), ("mlp", "mlp-relu")),
        ("quadratic:std=0.1..1.0", ("quadratic:std=0.5",), ("quadratic:std=1.5", "cnn")),
    ],
)
def test_what_a_family_covers(family, inside, outside):
    (family,) = make_variations(family)
    assert [spec for spec in inside if not family.covers(spec, "digits")] == []
    assert [spec for spec in outside if family.covers(spec, "digits")] == []
    assert not family.covers(inside[0], "mnist") or family.dataset is None
    generator = seeded()
    for _ in range(20):
        name = family.draw(generator).name
        # Not what is made narrower to be an autoencoder.
        assert "reconstruct" in name or family.covers(*(name + "/digits").split("/")[:2])
