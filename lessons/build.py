"""Makes the notebooks from their one source: python lessons/build.py 06 (no number: all of them).

    lessons/source/06_experts.py            what one writes: the percent format of jupytext
    lessons/06_experts.ipynb                to work in: solutions taken out and folded away, hints folded, no outputs
    lessons/solved/06_experts.ipynb         to read: with solutions, run from the first cell to the last, with outputs

WRITING.md says how a source is written. tests/test_lessons.py checks that the notebooks are what their sources make.
"""

import argparse
import re
import textwrap
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode, v4

LESSONS = Path(__file__).resolve().parent
SOURCES = sorted((LESSONS / "source").glob("[0-9][0-9]_*.py"))
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
          "language_info": {"name": "python"}}
SOLUTION = re.compile(r"^( *)### BEGIN SOLUTION\n(.*?)^ *### END SOLUTION\n?", re.S | re.M)


def exercise_notebook(source: Path) -> NotebookNode:
    """To work in: what stands between the marks of a solution is replaced by an error that asks for it."""
    cells = []
    for cell in cells_of(source):
        if "hints" in tags(cell):
            cell.source = fold_hints(cell.source)
        solutions = SOLUTION.findall(cell.source)
        if solutions:
            cell.source = SOLUTION.sub(r'\1raise NotImplementedError("your turn")' + "\n", cell.source).rstrip()
        cells.append(cell)
        if solutions:
            code = "\n\n".join(textwrap.dedent(body).rstrip() for _, body in solutions)
            cells.append(v4.new_markdown_cell(fold("A solution", f"```python\n{code}\n```")))
    return notebook(source, cells)


def solved_notebook(source: Path) -> NotebookNode:
    """To read: with the solutions in their places, and without hints. Not yet run."""
    cells = [cell for cell in cells_of(source) if "hints" not in tags(cell)]
    for cell in cells:
        cell.source = SOLUTION.sub(r"\2", cell.source).rstrip()
        if cell.cell_type == "markdown":    # this notebook lies one folder deeper
            cell.source = re.sub(r"\]\((?!https?:|#|\d\d_)", "](../", cell.source)
    return notebook(source, cells)


def cells_of(source: Path) -> list[NotebookNode]:
    return jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent").cells


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def notebook(source: Path, cells: list[NotebookNode]) -> NotebookNode:
    """Nothing in it may differ from one build to the next: no random ids, no version of anything."""
    for i, cell in enumerate(cells):
        cell.id = f"{source.stem[:2]}-{i:02}"
        cell.metadata = {}
    made = v4.new_notebook(cells=cells, metadata=KERNEL)
    made.nbformat_minor = 5
    return made


def fold_hints(text: str) -> str:
    """A list "1. ...", "2. ..." becomes hints to open one by one."""
    hints = (re.sub("^   ", "", hint, flags=re.M).strip() for hint in re.split(r"^\d+\. ", text, flags=re.M)[1:])
    return "\n\n".join(fold(f"Hint {n}", hint) for n, hint in enumerate(hints, start=1))


def fold(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"     # without empty lines it stays plain text


def run(made: NotebookNode, seconds: int = 120) -> NotebookNode:
    """Execute it from the first cell to the last, in a fresh kernel. An error in a cell is an error here."""
    NotebookClient(made, timeout=seconds, kernel_name="python3", record_timing=False, coalesce_streams=True,
                   resources={"metadata": {"path": str(LESSONS)}}).execute()
    made.metadata = nbformat.from_dict(KERNEL)      # running has noted the version of Python
    return made


def targets(source: Path) -> tuple[Path, Path]:
    return LESSONS / f"{source.stem}.ipynb", LESSONS / "solved" / f"{source.stem}.ipynb"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lessons", nargs="*", metavar="NUMBER", help="01, 06, ... (default: all)")
    wanted = parser.parse_args().lessons
    for source in SOURCES:
        if not wanted or source.stem[:2] in wanted:
            to_do, solved = targets(source)
            solved.parent.mkdir(exist_ok=True)
            nbformat.write(exercise_notebook(source), to_do)
            nbformat.write(run(solved_notebook(source)), solved)
            print(to_do.relative_to(LESSONS.parent), solved.relative_to(LESSONS.parent))


if __name__ == "__main__":
    main()
