"""Packages that only some commands need, and the extra of this project that installs each."""

from __future__ import annotations

import importlib.util

from lo_framework.spec import UserError

# module -> (package, extra, what it is for); [train] brings all that [eval] does
OPTIONAL = {
    "sklearn": ("scikit-learn", "train", "it holds the digits"),
    "tokenizers": ("tokenizers", "text", "it finds the words of texts"),
    "sacrebleu": ("sacrebleu", "text", "BLEU of translations"),
    "pooch": ("pooch", "train", "it downloads data sets"),
    "tensorboard": ("tensorboard", "train", "a run's curves"),
    "tqdm": ("tqdm", "train", "progress bars"),
    "higher": ("higher", "train", "the inner backend of that name"),
    "matplotlib": ("matplotlib", "train", "pictures"),
    "scipy": ("scipy", "eval", "eigenvalues of a Hessian"),
    "jinja2": ("Jinja2", "train", "the pages of reports"),
    "prodigyopt": ("prodigyopt", "baselines", "the baseline prodigy"),
    "schedulefree": ("schedulefree", "baselines", "the baseline schedule-free"),
    "huggingface_hub": ("huggingface_hub", "hub", "it exchanges files with the hub"),
}


def missing(module: str) -> str:
    """The line that says how to get the optional `module`, or '' where it is installed."""
    if importlib.util.find_spec(module) is not None:
        return ""
    package, extra, use = OPTIONAL[module]
    return f"needs {package} ({use}): pip install 'lo-framework[{extra}]'"


def require(module: str) -> None:
    """Refuse to go on where the optional `module` is not installed.

    It stands before every import of such a package, and at the start of a command that needs one
    only at its end, so that no hours of work are lost for want of it.

    Raises:
        UserError: it is missing; the line says how to get it.
    """
    if line := missing(module):
        raise UserError(line)
