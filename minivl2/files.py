"""Files that are there whole or not at all.

Lesson   lessons/11_the_real_weights.ipynb
Tests    tests/test_files.py
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(folder: str | Path) -> Iterator[Path]:
    """An empty folder to write files into. They move to `folder` only when the block ends without an error.

    A full disk, a kill, a bug: whatever happens inside, the files that were in `folder` before are untouched. A new
    folder appears by one rename, whole. In an existing one each file is replaced by renaming, so a program that has
    the old file open (or memory-mapped) keeps the old one.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", suffix="-unfinished", dir=folder.parent))
    try:
        yield staged
        for file in staged.iterdir():
            file.chmod(0o644)                   # some writers, and mkdtemp, keep what they make to the owner
            with open(file, "rb") as written:
                os.fsync(written.fileno())      # a rename can reach the disk before the bytes do
        if not folder.exists():
            staged.chmod(0o755)
            os.rename(staged, folder)
            return
        for file in sorted(staged.iterdir()):
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
