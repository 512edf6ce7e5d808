"""The model card of a learned optimizer: what a person who finds its file has to know.

It is a ``README.md`` as the Hugging Face hub reads it, YAML and then Markdown. The same optimizer
with the same record and score always has the same card.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from lo_framework.errors import visible
from lo_framework.files.sealed import FORMAT_VERSION
from lo_framework.learned.base import LearnedOptimizer
from lo_framework.learned.features import FEATURE_VERSION
from lo_framework.learned.score_file import Found
from lo_framework.learned.sources import HUB, HUB_FILE
from lo_framework.learned.storage import fingerprint, lineage

CARD = "README.md"
LICENCE = "MIT"
HEAD = "---\nlibrary_name: lo-framework\n"  # by which a card of ours is known

# key of a score -> title, and what the number means
_MEASURES = {
    "speed_up": ("speed-up", "AdamW's steps to its last loss over this one's; above 1 is better"),
    "final": ("final loss", "over AdamW's; below 1 is better"),
    "test": ("test loss", "over AdamW's; below 1 is better"),
    "spike": ("early spike", "worst early loss over the larger of the first and AdamW's worst"),
}

# key of a training record -> how the card calls it
_FACTS = {
    "steps": "outer steps",
    "inner_steps": "inner steps",
    "found_at_step": "found at outer step",
    "score": "score on validation (tuned AdamW: 1)",
    "repeatable": "repeatable",
    "lo_framework": "lo_framework",
    "commit": "commit",
    "torch": "torch",
    "processor": "processor",
}

_USE = """\
```python
import lo_framework as lo
optimizer = lo.Learned(model, "{name}", num_steps=1000)  # the steps of this training
{step}
```

On the hub, where the file is called `{file}`, `{hub}owner/name` takes the place of the path;
that needs `pip install 'lo-framework[hub]'`. Nothing in the file is unpickled, and damage is
noticed."""

_STEP = "optimizer.step()  # after loss.backward(), as with every torch.optim.Optimizer"
_STEP_EXPLICIT = """\
optimizer = lo.Regularized(optimizer, optimizer.explicit)
optimizer.step(closure)"""

_EXPLICIT = """
It was meta-trained on the gradients of explicit {name}:
`optimizer = lo.Regularized(optimizer, optimizer.explicit)` comes before the first step, and a step
is `optimizer.step(closure)`, where closure() zeroes the gradients, computes the loss, runs backward
and returns the loss."""

_NOT_FOR = """\
* It is an optimizer: it trains networks of yours and predicts nothing itself.
* Nothing is promised for problems unlike those that it was meta-trained and scored on{pool}. Large
  models, reinforcement learning, and data other than those named here are among them.
* Longer runs than it was meta-trained for{longest} are an extrapolation.
* It is no substitute for a comparison: where the result matters, train with a tuned AdamW too.
* Sparse gradients and complex parameters are refused."""


def model_card(
    learned: LearnedOptimizer, name: str, summary: Mapping[str, Any], score: Found | None = None
) -> str:
    """The card of ``learned`` in a file called ``name``, trained as ``summary`` says."""
    run = summary.get("run")
    run = run if isinstance(run, Mapping) else {}
    explicit = learned.explicit(learned.theta())
    step = _STEP if explicit is None else _STEP_EXPLICIT
    use = _USE.format(name=name, file=HUB_FILE, hub=HUB, step=step)
    if explicit is not None:
        use += "\n" + _EXPLICIT.format(name=explicit.name)
    pool = f" ({_pool(run)})" if _pool(run) else ""
    longest = f" ({run['episode_length']} steps)" if run.get("episode_length") else ""
    sections = {
        f"A learned optimizer of kind {learned.kind}": _what(learned),
        "How to use it": use,
        "How well it does": _scores(score) if score else "Nobody has scored it: see `eval score`.",
        "How it was trained": _training(summary, run),
        "What it is not for": _NOT_FOR.format(pool=pool, longest=longest),
        "Licence": f"{LICENCE}, as lo_framework itself.",
    }
    tags = ("learned-optimizer", "meta-learning", "optimizer", "pytorch")
    head = [f"{HEAD}license: {LICENCE.lower()}", "tags:", *(f"- {tag}" for tag in tags), "---"]
    body = [f"## {title}\n\n{text}" for title, text in sections.items()]
    return "\n".join(head) + "\n\n" + "\n\n".join(body).removeprefix("#") + "\n"


def _what(learned: LearnedOptimizer) -> str:
    count = sum(x.numel() for x in learned.theta().values())
    return (
        "A rule that updates the weights of neural networks, itself trained: meta-trained with\n"
        f"lo_framework, it has {count:,} meta-parameters and is used as a\n"
        f"`torch.optim.Optimizer`. Format version {FORMAT_VERSION}, feature version "
        f"{FEATURE_VERSION}, weights `{fingerprint(learned)}`."
    )


def _pool(run: Mapping[str, Any]) -> str:
    """The problems of a run's record in a few words."""
    words = [str(run.get(key, "")) for key in ("optimizees", "datasets")]
    return _cell(" on ".join(words)) if all(words) else ""


def _scores(found: Found) -> str:
    """The table over all problems, and one of them each."""
    content, label = found.content, found.label
    overall = content.derived.overall[label]
    rows = [
        [title, _interval(overall[key]), meaning]
        for key, (title, meaning) in _MEASURES.items()
        if overall.get(key)
    ]
    each = {x.get("problem"): x for x in content.derived.problems if x.get("optimizer") == label}
    problems = [
        [x.name, x.axis, x.steps, *(_number(each[x.name].get(key)) for key in _MEASURES)]
        for x in content.problems
        if x.name in each
    ]
    origin = content.provenance
    versions = origin.get("versions")
    torch = versions.get("torch") if isinstance(versions, Mapping) else None
    where = [("commit", origin.get("commit")), ("torch", torch)]
    made = ", ".join(f"{key} {_cell(x)}" for key, x in where if x)
    titles = [title for title, _ in _MEASURES.values()]
    return (
        f"`lo-eval score`: {len(problems)} problem{'s' * (len(problems) != 1)} "
        f"that it never saw, {len(content.report_seeds)} seeds, nothing tuned,\n"
        f"against AdamW tuned on each problem{f' ({made})' if made else ''}.\n"
        "Interquartile means over problems, with 95% intervals:\n\n"
        f"{_table(['', 'value', 'meaning'], rows)}\n\n"
        "Medians over seeds of each problem; early spikes are of the worst seed:\n\n"
        f"{_table(['problem', 'axis', 'steps', *titles], problems)}"
    )


def _training(summary: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """The record of a run of meta-training, as far as there is one."""
    facts = [("seed", str(run["seed"]) if "seed" in run else None)]
    facts += [(title, summary.get(key)) for key, title in _FACTS.items()]
    rows = [[title, _number(x)] for title, x in facts if x is not None]
    if not rows:
        return "The file has no record of it."
    parts = [_table(["", ""], rows)]
    if run:
        parts += ["Its settings, as `python -m meta_train` takes them:", _options(run)]
    for begun in [*lineage(summary)][1:]:
        line = f"The run began with the weights `{_cell(begun.get('weights', ''))}`"
        if isinstance(before := begun.get("run"), Mapping):
            parts += [f"{line}, which these settings gave:", _options(before)]
        else:
            parts.append(line)
    return "\n\n".join(parts)


def _options(run: Mapping[str, Any]) -> str:
    options = [
        f"--{key.replace('_', '-')} {shlex.quote(_cell(value))}"
        for key, value in sorted(run.items())
        if value not in ("", None)
    ]
    return "```\n" + "\n".join(options) + "\n```"


def _table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(_cell(x) for x in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    """One line that ends neither a cell of a table nor a block of code."""
    return visible(value).replace("|", "/").replace("`", "'")


def _interval(values: Sequence[float | None]) -> str:
    value, *ends = map(_number, values)
    return f"{value} [{', '.join(ends)}]" if ends else value


def _number(value: Any) -> str:
    """A number in three digits; in a score, what is not finite stands as null."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else _cell("infinite" if value is None else value)
