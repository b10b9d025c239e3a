"""Commands for the user to paste into a shell."""

import shlex
from pathlib import Path


def pasteable(*words: str | Path) -> str:
    """Returns words as a shell reads them; paths relative to the working folder where they lie below it.

    >>> pasteable("esper-ray", "report", Path.cwd() / "runs" / "mein Lauf ü")
    "esper-ray report 'runs/mein Lauf ü'"
    """
    return shlex.join(_word(word) if isinstance(word, Path) else word for word in words)


def _word(path: Path) -> str:
    here = Path.cwd()
    shown = path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path
    return f"./{shown}" if str(shown).startswith("-") else str(shown)  # or it would be taken for a flag
