"""Exercises on minivl2/files.py, of lesson 11. Graded by tests/test_files.py."""

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from minivl2 import files
from minivl2.grading.exercise import Exercise, Mistake


def a_story():
    """What stands where, after a write that succeeds, one into the same folder, and one that fails in the middle."""
    seen = []
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top) / "deep" / "model"

        def look():
            seen.append(sorted((str(p.relative_to(top)), p.read_text()) for p in Path(top).rglob("*")
                               if p.is_file() and "unfinished" not in str(p)))
            seen.append(len(list(folder.parent.iterdir())))
        with files.written_whole(folder) as staged:
            (staged / "a").write_text("1")
            look()
        look()
        (folder / "kept").write_text("k")
        with files.written_whole(folder) as staged:
            (staged / "a").write_text("2")
            look()
        look()
        try:
            with files.written_whole(folder) as staged:
                (staged / "a").write_text("3")
                raise RuntimeError
        except RuntimeError:
            seen.append("raised")
        look()
    return seen


@contextmanager
def straight_in(folder):
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    yield folder


@contextmanager
def copied(folder):
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(suffix="-unfinished", dir=folder.parent))
    try:
        yield staged
        shutil.copytree(staged, folder, dirs_exist_ok=True)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


@contextmanager
def folder_replaced(folder):
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(suffix="-unfinished", dir=folder.parent))
    try:
        yield staged
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


EXERCISES = (
    Exercise("files.written_whole", "test", a_story, (
        Mistake("written in place", straight_in,
                "files are written straight into the folder. Whoever is stopped in the middle leaves half a "
                "checkpoint; write "
                "into a folder beside it and rename at the end."),
        Mistake("moved even after an error", {"finally:": "finally:\n        for file in staged.glob('*'):\n"
                                                          "            folder.mkdir(exist_ok=True)\n"
                                                          "            os.replace(file, folder / file.name)"},
                "what was written before an error is moved to the folder too. Only a block that ended well may move "
                "anything: after yield, not in finally."),
        Mistake("the unfinished folder stays", {"shutil.rmtree(staged, ignore_errors=True)": "pass"},
                "the unfinished folder stays behind. Remove it in finally, whatever happened."),
        Mistake("the folder replaced", folder_replaced,
                "you replace the whole folder: files of other names, which were there before, are lost."),
        Mistake("errors swallowed", {"    finally:\n        shutil": "    except BaseException:\n        pass\n"
                                                                     "    finally:\n        shutil"},
                "an error in the block disappears. Clean up in finally, and let it go on."),
        Mistake("copied, not renamed", copied),
        Mistake("parents not made", {"folder.parent.mkdir(parents=True, exist_ok=True)": "pass"},
                "a folder in a folder that does not exist yet is an error with you: make the parents first."),
    )),
)
