"""The lessons: their notebooks are what their sources make and run to the end; the exercises are graded rightly.

That a wrong answer is rejected is the work of the component's own tests; here is proved that they do it, one by one.
"""

import ast
import re
import sys
from pathlib import Path

import nbformat
import pytest

from minivl2.grading import exercise, substitute, worker

ROOT = Path(__file__).parent.parent
LESSONS = ROOT / "lessons"
sys.path.insert(0, str(LESSONS))
import build  # noqa: E402

EXERCISES = exercise.all_exercises()
MISTAKES = [(e, m) for e in EXERCISES for m in e.mistakes]
SLOW = {"08": 120, "12": 120}      # seconds a lesson may take; all others 60
NOT_TAUGHT = {      # nothing of the model: a command line, what draws, what runs training and grading, the toy's pictures
    "__init__.py", "__main__.py", "cli.py", "figures.py", "panels.py", "play.py", "xray.py",
    "bench.py", "gains.py", "heap.py", "afresh.py", "stand_in.py", "roofline.py", "peer.py",
    "training/cluster.py", "training/report.py", "training/shard.py", "training/team.py",
    "training/tokenizer.py", "training/__init__.py", "grading/*.py", "toyworld/*.py"}
GRADED = re.compile(r'^@grade\("([\w.]+)"\)', re.M)

each_lesson = pytest.mark.parametrize("source", build.SOURCES, ids=lambda source: source.stem)


def committed(source):
    return [nbformat.read(path, as_version=4) for path in build.targets(source)]


def code_of(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(notebook):
    return "".join(o.text for c in code_of(notebook) for o in c.outputs if o.output_type == "stream" and o.name == "stdout")


def exercises_of(source):
    return GRADED.findall(source.read_text(encoding="utf-8"))


# ------------------------------------------------------------------------------------------ notebooks


@each_lesson
def test_both_notebooks_are_what_the_source_makes(source):
    made = build.exercise_notebook(source), build.solved_notebook(source)
    for there, wanted in zip(committed(source), made, strict=True):
        for cell in (*there.cells, *wanted.cells):
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        assert there == wanted, f"run: python lessons/build.py {source.stem[:2]}"


@each_lesson
def test_the_notebook_to_work_in_gives_nothing_away(source):
    to_do, _ = committed(source)
    for cell in code_of(to_do):
        assert not cell.outputs and cell.execution_count is None
        assert "SOLUTION" not in cell.source
        assert bool(GRADED.search(cell.source)) == ("NotImplementedError" in cell.source)


@each_lesson
def test_the_solved_notebook_is_committed_as_it_ran(source):
    _, solved = committed(source)
    assert [cell.execution_count for cell in code_of(solved)] == list(range(1, len(code_of(solved)) + 1))
    ran_well(solved, source)


def ran_well(notebook, source):
    for cell in code_of(notebook):
        lines = 0
        for output in cell.outputs:
            assert output.output_type != "error" and output.get("name") != "stderr", cell.source
            text = output.get("text", "") + output.get("data", {}).get("text/plain", "")
            lines += text.count("\n")
            assert not re.search(r" at 0x[0-9a-f]{6}|/tmp/|/home/|/root/|/work/|[A-Z]:\\\\", text), text
            assert not text.startswith("<Figure") or "image/png" in output.data, "a figure that is not shown"
        assert lines <= 30, f"a wall of output: {cell.source}"
    for name in exercises_of(source):
        assert f"{name}: correct." in printed(notebook)
    assert "✗" not in printed(notebook)


@each_lesson
def test_the_solved_notebook_runs_and_every_grader_is_green(source):
    ran_well(build.run(build.solved_notebook(source), SLOW.get(source.stem[:2], 60)), source)


@each_lesson
def test_the_notebook_to_work_in_runs_to_the_end_before_anything_is_written(source):
    run = build.run(build.exercise_notebook(source), SLOW.get(source.stem[:2], 60))
    assert not any(o.output_type == "error" or o.get("name") == "stderr" for c in code_of(run) for o in c.outputs)
    said = printed(run)
    for name in exercises_of(source):
        assert f"{name}: not yet." in said
    assert ": correct." not in said


@each_lesson
def test_a_lesson_opens_with_where_we_are_and_how_long_it_takes(source):
    cells = build.cells_of(source)
    assert re.match(rf"# {int(source.stem[:2])}\. ", cells[0].source)
    assert re.search(r"\*\d+ minutes\. Modules?: `minivl2/", cells[0].source)
    assert "**In the paper:**" in cells[0].source and "**At the end you will have written**" in cells[0].source
    first = next(cell for cell in cells if cell.cell_type == "code")
    assert "figures.where(" in first.source.splitlines()[-1]


@each_lesson
def test_its_code_fits_the_page_and_its_links_lead_somewhere(source):
    for path, notebook in zip(build.targets(source), committed(source), strict=True):
        for cell in notebook.cells:
            if cell.cell_type == "code":
                assert not [line for line in cell.source.splitlines() if len(line) > 100]
            for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", cell.source) if cell.cell_type == "markdown" else ():
                assert target.startswith("https://arxiv.org/") or (path.parent / target).exists(), target


def test_every_module_of_the_model_names_the_lesson_that_teaches_it():
    package = ROOT / "minivl2"
    listed = {path for pattern in NOT_TAUGHT for path in package.glob(pattern)}
    assert all(any(package.glob(pattern)) for pattern in NOT_TAUGHT)
    for path in sorted(package.rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        named = [name for line in re.findall(r"^Lesson .*", docstring, re.M) for name in re.findall(r"lessons/[\w.]+", line)]
        assert named or path in listed, f"{path.name} lacks a line: Lesson   lessons/..."
        for name in named:
            assert (ROOT / name).exists(), f"{path.name}: there is no {name}"


# ------------------------------------------------------------------------------------------ exercises


@each_lesson
def test_a_lesson_has_exercises_with_hints_and_a_solution(source):
    cells = build.cells_of(source)
    graded = [i for i, cell in enumerate(cells) if GRADED.search(cell.source)]
    assert len(graded) >= 2
    for i in graded:
        assert "### BEGIN SOLUTION" in cells[i].source and '"""' in cells[i].source
        assert "hints" in build.tags(cells[i - 1])
        assert 2 <= len(re.findall(r"^\d\. ", cells[i - 1].source, re.M)) <= 4


def test_every_exercise_is_in_one_lesson_and_every_graded_cell_is_an_exercise():
    in_lessons = sorted(name for source in build.SOURCES for name in exercises_of(source))
    assert in_lessons == sorted(e.name for e in EXERCISES)


@pytest.mark.parametrize("task", EXERCISES, ids=lambda e: e.name)
def test_an_exercise_knows_three_mistakes_and_each_classic_looks_different(task):
    assert len(task.mistakes) >= 3
    ours = task.outcome(substitute.ours(task.name))
    outcomes = []
    for mistake in task.mistakes:
        if mistake.says:
            outcome = task.outcome(task.wrong(mistake))
            assert not any(exercise.same(outcome, other) for other in (ours, *outcomes)), mistake.label
            outcomes.append(outcome)
    substitute.put(task.name, substitute.ours(task.name))
    assert outcomes and not isinstance(ours, str)       # an error's name would be a string: the probe is broken


@pytest.mark.parametrize("task", EXERCISES, ids=lambda e: e.name)
def test_our_own_answer_passes(task):
    report = worker.run(worker.Job(task.name), seconds=60)
    assert report.passed, str(report)


@pytest.mark.parametrize("task, mistake", MISTAKES, ids=lambda x: getattr(x, "name", None) or x.label.replace(" ", "-"))
def test_every_wrong_answer_is_rejected_and_classics_are_named(task, mistake):
    task.wrong(mistake)         # says so if our code has changed and the mistake cannot be made any more
    report = worker.run(worker.Job(task.name, mistake=mistake.label, hasty=True), seconds=60)
    assert not report.problem and not report.passed and not all(report.tests.values())
    assert report.mistake == mistake.says


# ------------------------------------------------------------------------------------------ the notebook's parts


def test_hints_and_solutions_are_folded(tmp_path):
    source = tmp_path / "99_test.py"
    source.write_text('''# %% [markdown]
# # 99. A test. See [tests](../tests) and [the next](06_experts.ipynb).

# %% [markdown] tags=["hints"]
# 1. First,
#    over two lines.
# 2. Then `this`.

# %%
@grade("experts.MLP")
class MLP:
    def f(self):
        """Says."""
        ### BEGIN SOLUTION
        if self:
            return 1
        ### END SOLUTION

    def g(self):
        ### BEGIN SOLUTION
        return 2
        ### END SOLUTION
''')
    to_do, solved = build.exercise_notebook(source), build.solved_notebook(source)
    assert [c.cell_type for c in to_do.cells] == ["markdown", "markdown", "code", "markdown"]
    assert "<summary>Hint 1</summary>\n\nFirst,\nover two lines.\n\n</details>" in to_do.cells[1].source
    assert to_do.cells[2].source.count('        raise NotImplementedError("your turn")') == 2
    assert "return" not in to_do.cells[2].source
    assert "if self:\n    return 1\n\nreturn 2" in to_do.cells[3].source
    assert [c.cell_type for c in solved.cells] == ["markdown", "code"]
    assert "return 1\n\n    def g" in solved.cells[1].source and "SOLUTION" not in solved.cells[1].source
    assert "[tests](../../tests)" in solved.cells[0].source and "[the next](06_experts.ipynb)" in solved.cells[0].source
