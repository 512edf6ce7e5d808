"""How much code there is, counted so that layout, comments and docstrings are free.

python -m tests.test_size [TREE]        # the row of docs/design.md for a checkout
"""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES = 350  # of a file: one idea
FREE = {
    *(tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT),
    *(tokenize.ENCODING, tokenize.ENDMARKER),
}


def tokens(text: str) -> int:
    """The tokens of a module without comments, layout and the docstrings of its definitions."""
    docstrings = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            value = first.value if isinstance(first, ast.Expr) else None
            if isinstance(value, ast.Constant) and isinstance(value.value, str):
                docstrings.add((value.lineno, value.col_offset))
    return sum(
        token.type not in FREE and not (token.type == tokenize.STRING and token.start in docstrings)
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
    )


def sources(tree: Path) -> dict[str, str]:
    """The text of every tracked Python file but tests."""
    command = ["git", "-C", str(tree), "ls-files", "*.py"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    paths = {name: tree / name for name in names if not name.startswith("tests/")}
    return {name: path.read_text("utf-8") for name, path in paths.items() if path.is_file()}


def test_what_is_counted() -> None:
    assert tokens('"""Doc."""\nx = 1  # why\n\n\ndef f():\n    """Doc."""\n    return "a"\n') == 10


def test_no_file_is_long() -> None:
    lengths = {name: text.count("\n") for name, text in sources(ROOT).items()}
    assert lengths and not {name: n for name, n in lengths.items() if n > MOST_LINES}


if __name__ == "__main__":
    texts = sources(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT).values()
    lines = sum(text.count("\n") for text in texts)
    print(f"{len(texts)} files, {lines:,} lines, {sum(map(tokens, texts)):,} tokens")
