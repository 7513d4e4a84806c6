"""Files that people name: written whole, or not at all."""

import os
from pathlib import Path


def write_file(path: Path, text: str) -> None:
    """Write `text`, so that whoever reads meanwhile finds the old text or the new one.

    A link stays, and its target is written. A device or a pipe is written into, and
    never replaced. After an error a file has its old text. Raises OSError.
    """
    if path.exists() and not path.is_file():
        path.write_text(text, encoding="utf-8")
        return
    target = path.resolve()
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        draft.write_text(text, encoding="utf-8")
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
