"""The code of a page of docs/, as one script in which every line stands where the page has it.

A page runs from top to bottom, in one process and an empty folder:

* ``python`` blocks are code; one that begins with ``# name.py`` is written into that file;
* ``bash`` blocks are commands, of which the first that fails ends the script;
* ``<!-- setup ... -->`` is code that a reader need not see: a model, some data;
* ``console`` blocks (what takes hours, or a network) are not run: `test_pages` reads the commands
  in them as the programs would.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$|^<!-- setup\n(.*?)^-->$", re.M | re.S)
FILE = re.compile(r"# (\w+\.py)\n")
# In one line each, so that those of the page keep their numbers.
WRITE = "__import__('pathlib').Path({name!r}).write_text({text!r})"
SHELL = "__import__('subprocess').run(['bash', '-euo', 'pipefail', '-c', {text!r}], check=True)"


def blocks(page: Path) -> Iterator[tuple[str, str, int]]:
    """Kind, text and first line of each block; a setup is of the kind ``setup``."""
    text = page.read_text("utf-8")
    for found in BLOCK.finditer(text):
        kind, code, hidden = found.groups()
        line = text.count("\n", 0, found.start()) + 1
        yield ("setup", hidden, line) if code is None else (kind, code, line)


def script(page: Path) -> str:
    """What the page does, or an empty text."""
    lines: list[str] = []
    for kind, text, line in blocks(page):
        name = FILE.match(text)
        if kind == "bash":
            text = SHELL.format(text=text)
        elif kind == "python" and name:
            text = WRITE.format(name=name[1], text=text)
        elif kind not in ("python", "setup"):
            continue
        lines += [""] * (line - len(lines)) + text.splitlines()
    return "\n".join(lines) + "\n" if lines else ""
