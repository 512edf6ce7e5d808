"""make_tasks, the registry and plugins."""

import sys
import textwrap
import time
from types import SimpleNamespace

import pytest
import torch

from lo_framework.optimizees import make_tasks, register_model, register_task
from lo_framework.optimizees.datasets import load
from lo_framework.optimizees.registry import TASKS
from lo_framework.plugin import load_plugin, load_plugins
from lo_framework.spec import UserError


@pytest.fixture
def tasks_restored():
    """The registry as it was, after a test that adds to it."""
    held = dict(TASKS)
    yield
    TASKS.clear()
    TASKS.update(held)


def test_full_product_with_canonical_names():
    tasks = make_tasks("mlp:hidden=32,cnn:norm=batch,channels=8", ["digits", "digits:size=8"][:1])
    assert [t.name for t in tasks] == ["mlp/digits", "cnn:channels=8,norm=batch/digits"]


def test_tasks_without_data_come_once():
    tasks = make_tasks(["quadratic:dim=3", "mlp,rosenbrock"], "digits")
    assert [t.name for t in tasks] == ["quadratic:dim=3", "mlp/digits", "rosenbrock"]


def test_data_is_shared_between_tasks():
    a, b = make_tasks("mlp,cnn")
    assert a.full("train")[0].data_ptr() == b.full("train")[0].data_ptr()
    assert load("digits") is load("digits:size=8")


@pytest.mark.parametrize(
    ("optimizees", "datasets", "words"),
    [
        ("mpl", "digits", 'unknown optimizee "mpl" (did you mean "mlp"?)'),
        ("mlp", "digit", 'unknown data set "digit" (did you mean "digits"?)'),
        ("quadratic", "digit", 'unknown data set "digit"'),
        ("mlp:hiden=3", "digits", '(did you mean "hidden"?)'),
        ("mlp:hidden=0", "digits", "at least 1"),
        ("mlp:batch=0", "digits", "at least 1"),
        ("cnn:channels=none", "digits", "at least one entry"),
        ("cnn:channels=8x8x8x8", "digits", "below one pixel"),
        ("cnn:norm=layer", "digits", "none, batch, group"),
        ("transformer:patch=3", "digits", "patch=3 does not divide images of 8x8 pixels"),
        ("transformer:heads=5", "digits", "width (32) must be a multiple of heads (5)"),
        ("transformer:layers=0", "digits", "at least 1"),
        ("transformer:dropout=1", "digits", "expected at least 0 and below 1"),
        ("transformer:act=tanh", "digits", "gelu, relu"),
        ("transfomer", "digits", 'did you mean "transformer"?'),
        ("mlp", "digits:size=9", "8x8"),
        ("mlp,mlp:hidden=32", "digits", "given twice"),
        ("", "digits", "no optimizees"),
        ([], "digits", "no optimizees"),
        ("mlp", " ", "no data sets"),
        ("quadratic:cond=0.5", "digits", "at least 1"),
        ("rosenbrock:dim=1", "digits", "at least 2"),
    ],
)
def test_bad_specs(optimizees, datasets, words):
    with pytest.raises(UserError) as error:
        make_tasks(optimizees, datasets)
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_bad_device():
    with pytest.raises(UserError, match='device "gpu"'):
        make_tasks("mlp", device="gpu")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("mlp:hidden=999999999999", "expected at least 1 and at most 65536"),
        ("mlp:hidden=65536x65536", "mlp: the model has more than 268,435,456 parameters"),
        ("mlp:batch=1000000000000", "expected at least 1 and at most 1048576"),
        ("quadratic:dim=100000000000", "expected at least 1 and at most 16777216"),
        ("quadratic:std=inf", "expected at least 0 and at most 1000000"),
        ("rosenbrock:dim=100000000000", "expected at least 2 and at most 16777216"),
        ("transformer:layers=1000000000", "expected at least 1 and at most 256"),
        ("transformer:width=65536,layers=256", "the model has more than"),
        ("cnn:channels=100000000", "expected at least 1 and at most 65536"),
        ("cnn:channels=60000x60000", "the model has more than"),
    ],
)
def test_sizes_beyond_all_use_are_refused_before_memory_is_taken(spec, words):
    begin = time.process_time()
    with pytest.raises(UserError) as error:
        make_tasks(spec)
    assert words in str(error.value) and "\n" not in str(error.value)
    assert time.process_time() - begin < 5


def test_the_meta_device_is_refused():
    with pytest.raises(UserError, match='device "meta" cannot be used here'):
        make_tasks("mlp", device="meta")


def test_plugin_file(tmp_path, tasks_restored):
    path = tmp_path / "mine.py"
    path.write_text(
        textwrap.dedent("""
        from __future__ import annotations
        from dataclasses import dataclass
        from lo_framework.optimizees import register_task
        from lo_framework.optimizees import ClassificationTask
        from lo_framework.optimizees.models.mlp import MLP, MLPConfig

        @dataclass(frozen=True, kw_only=True)
        class MineConfig:
            width: int = 5

        @register_task("mine", config=MineConfig)
        def build(config, dataset):
            mlp = MLPConfig(hidden=(config.width,))
            model = MLP(mlp, dataset.shape, dataset.num_classes)
            return ClassificationTask(model, dataset, name="mine", batch_size=64)
        """)
    )
    module = load_plugin(str(path))
    assert load_plugin(str(path)) is module
    (task,) = make_tasks("mine:width=7")
    params, _ = task.init(torch.Generator().manual_seed(0))
    assert task.name == "mine:width=7/digits"
    assert params["layers.0.weight"].shape == (7, 64)


def test_plugin_module(tmp_path, monkeypatch):
    (tmp_path / "lo_test_plugin_module.py").write_text("LOADED = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_plugin("lo_test_plugin_module").LOADED
    del sys.modules["lo_test_plugin_module"]


def test_a_model_of_ones_own_is_a_task_on_every_data_set(tmp_path, tasks_restored):
    path = tmp_path / "linear.py"
    path.write_text(
        textwrap.dedent("""
        from dataclasses import dataclass
        from lo_framework.optimizees import register_model
        from lo_framework.optimizees.models.mlp import MLP, MLPConfig

        @dataclass(frozen=True, kw_only=True)
        class Config(MLPConfig):
            hidden: tuple[int, ...] = ()

        @register_model("linear", config=Config)
        class Linear(MLP):
            pass
        """)
    )
    load_plugin(str(path))
    (task,) = make_tasks("linear:batch=7")
    assert task.name == "linear:batch=7/digits" and task.batch_size == 7
    assert set(task.init(torch.Generator())[0]) == {"layers.0.weight", "layers.0.bias"}
    with pytest.raises(UserError, match='the optimizee "linear" exists already'):
        register_model("linear", config=type(task))(type("Linear", (), {"__module__": "mine"}))


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("import no_such_package_here", "no_such_package_here"),
        ("def broken(:", "SyntaxError"),
        ("x = 1\n1 / 0", "ZeroDivisionError: division by zero (bad.py, line 2)"),
        (
            "from optimizees import register_task\nregister_task('mlp')(lambda c, d: None)",
            'the optimizee "mlp" exists already',
        ),
    ],
)
def test_plugin_that_fails(tmp_path, code, words):
    path = tmp_path / "bad.py"
    path.write_text(code)
    with pytest.raises(UserError) as error:
        load_plugin(str(path))
    assert words in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert not any(name.startswith("lo_plugin_bad") for name in sys.modules)


@pytest.mark.parametrize("name", ["absent.py", "no_such_package_here.module"])
def test_plugin_that_is_missing(name):
    with pytest.raises(UserError, match="plugin"):
        load_plugin(name)


def test_entry_points(monkeypatch):
    def fail():
        raise RuntimeError("cannot start")

    entries = [SimpleNamespace(name="good", value="a.b", load=lambda: None)]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: entries)
    load_plugins(["math"])
    entries.append(SimpleNamespace(name="bad", value="c.d", load=fail))
    with pytest.raises(UserError, match=r'plugin "bad" \(c.d\): RuntimeError: cannot start'):
        load_plugins()


@pytest.mark.parametrize("name", ["", "a:b", "a,b", "a+b", "a/b", "a b"])
def test_register_task_refuses_names(name):
    with pytest.raises(UserError):
        register_task(name)
