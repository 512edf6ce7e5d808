"""Several reports as one Markdown page: ratios over the tasks of all, then their texts in order
with their pictures.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lo_framework.eval.report.ratios import ratios
from lo_framework.eval.studies.result import Result
from lo_framework.files.atomic import atomic_write_text
from lo_framework.spec import UserError

_LINK = re.compile(r"\]\(([^)/:]+\.png)\)")


def join(folders: Sequence[Path], results: Mapping[Path, Result], path: Path) -> None:
    """Write ``path`` from the Markdown and PNG files of ``folders``, and from the ``results`` of
    transfer among them.

    Raises:
        UserError: a folder has no Markdown file; `eval report` makes it.
    """
    names = [Path(os.path.relpath(folder, path.parent)).as_posix() for folder in results]
    together = (
        [table.markdown() for table in ratios([*results.values()], names)]
        if len(results) > 1
        else []
    )
    parts = ["\n\n".join(["# Together", *together])] if together else []
    for folder in folders:
        texts = sorted(folder.glob("*.md"))
        if not texts:
            raise UserError(f"there is no report (.md) in {str(folder)!r} to join")
        base = Path(os.path.relpath(folder, path.parent)).as_posix()
        for file in texts:
            text = file.read_text("utf-8").rstrip()
            shown = set(_LINK.findall(text))
            text = _LINK.sub(lambda m, base=base: f"]({base}/{m[1]})", text)  # type: ignore[misc]
            rest = [p.name for p in sorted(folder.glob("*.png")) if p.name not in shown]
            pictures = [f"![{name}]({base}/{name})" for name in rest]
            parts.append("\n\n".join([f"*{base}*", text, *pictures]))
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, "\n\n---\n\n".join(parts) + "\n")
