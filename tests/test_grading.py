"""Grading: it is our tests that grade, it says what is wrong, and nothing an answer does takes the grader down."""

import itertools
import linecache
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import cloudpickle
import pytest
import torch
from nbclient import NotebookClient
from nbformat import v4

from minivl2 import decoder, experts, model
from minivl2.grading import examine, exercise, grade, substitute, worker

ROOT = Path(__file__).parent.parent
CELLS = itertools.count()


def cell(source, name):
    """What a notebook's cell defines: its source is remembered, and it belongs to no module one could import."""
    source, file = textwrap.dedent(source), f"/a/notebook/cell {next(CELLS)}"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    space = {"__name__": "__main__"}
    exec(compile(source, file, "exec"), space)
    return space[name]


def step_bias(line, before=""):
    """An answer to a small exercise, that does this."""
    return cell(f"import torch\n{before}\ndef step_bias(self, load, step=0.001):\n    {line}\n", "step_bias")


RIGHT = "self.bias += step * (load.float().mean() - load).sign()"


@pytest.fixture(autouse=True)
def ours_again():
    yield
    for name in list(substitute._originals):
        substitute.put(name, substitute.ours(name))


# ------------------------------------------------------------------------------------------ what it says


def test_a_right_answer_passes_and_takes_the_place_of_ours(capsys):
    mine = step_bias(RIGHT)
    assert grade("experts.Gate.step_bias", mine) is mine
    assert experts.Gate.step_bias is mine
    assert "correct. It passes 2 tests" in capsys.readouterr().out


def test_a_wrong_answer_is_named_and_ours_stays(capsys):
    ours = experts.Gate.step_bias
    assert grade("experts.Gate.step_bias")(step_bias(RIGHT.replace("+=", "-="))) is ours
    assert experts.Gate.step_bias is ours
    said = capsys.readouterr().out
    assert "It passes 0 of 2 tests" in said
    assert "✗ the bias moves a fixed step towards balance" in said
    assert "The mistake: the wrong way round" in said


def test_it_shows_the_smallest_case_the_line_of_the_test_and_what_was_printed():
    said = str(examine("experts.Gate.step_bias", step_bias(RIGHT + " * 1.5; print('my step', step)")))
    assert "The smallest case found:" in said and "chosen=[0]" in said and "seed=0" in said
    assert "tests/test_experts.py, line" in said and "assert gate.bias.tolist() == pytest.approx(want)" in said
    assert "it printed:\n      my step 0.01" in said
    assert len(said.splitlines()) < 25


def test_it_shows_the_line_of_the_answer_that_failed():
    said = str(examine("experts.Gate.step_bias", step_bias("self.bias += lode", before="# a comment")))
    assert "your code, line 4:   self.bias += lode" in said
    assert "NameError: name 'lode' is not defined" in said


def test_a_stub_is_not_yet_and_no_test_is_run(monkeypatch):
    monkeypatch.setattr(worker, "run", None)
    assert "not yet. Write it" in str(examine("experts.Gate.step_bias", step_bias("raise NotImplementedError('your turn')")))
    half = cell("class MLP:\n    def __init__(self): pass\n    def forward(self): raise NotImplementedError", "MLP")
    assert not examine("experts.MLP", half).passed


def test_it_says_so_when_there_is_nothing_to_grade(monkeypatch, tmp_path):
    assert "Expected a function or a class, got None." in str(examine("experts.MLP", None))
    assert "This is minivl2's own" in str(examine("experts.MLP", experts.MLP))
    with pytest.raises(ValueError, match="minivl2 has nothing called 'experts.MPL'"):
        grade("experts.MPL", experts.MLP)
    assert "is not an exercise; these are: experts.MLP" in str(examine("experts.Gate.choose", step_bias("pass")))
    assert "There are no exercises on minivl2's images" in str(examine("images.open_image", step_bias("pass")))
    monkeypatch.setattr(exercise, "TESTS", tmp_path / "tests")
    assert "They come with a clone of the repository" in str(examine("experts.Gate.step_bias", step_bias(RIGHT)))


# ------------------------------------------------------------------------------------------ what an answer may use


def test_an_answer_may_use_helpers_imports_and_numbers_of_other_cells():
    mine = cell("""
        import torch as t
        from minivl2.experts import MLP
        SIGN = 1
        def share(load):
            return load.float().mean()
        def step_bias(self, load, step=0.001):
            assert MLP
            self.bias += SIGN * step * t.sign(share(load) - load)
        """, "step_bias")
    assert examine("experts.Gate.step_bias", mine).passed


def test_an_answer_may_call_itself_before_the_notebook_knows_it():
    mine = step_bias(f"""
        if load.dtype != torch.float64:
            return step_bias(self, load.double(), step)
        {RIGHT}""")
    del mine.__globals__["step_bias"]       # as above a decorator
    assert examine("experts.Gate.step_bias", mine).passed


def test_an_answer_may_be_a_class():
    mine = cell("""
        from torch import nn
        class MLP(nn.Module):
            def __init__(self, width, inner):
                super().__init__()
                self.gate_proj, self.up_proj = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
                self.down_proj = nn.Linear(inner, width, bias=False)
            def forward(self, x):
                return self.down_proj(nn.functional.silu(self.gate_proj(x)) * self.up_proj(x))
        """, "MLP")
    assert grade("experts.MLP", mine) is mine
    assert decoder.MLP is mine          # wherever minivl2 has imported it


def test_what_cannot_be_sent_is_said():
    assert "cannot be sent" in str(examine("experts.Gate.step_bias", step_bias(
        "print(LOCK)", "import threading\nLOCK = threading.Lock()")))


# ------------------------------------------------------------------------------------------ what an answer may do


@pytest.mark.parametrize("line, said", [
    ("while True: pass", "It had not ended after 2 seconds of computing, and was stopped"),
    ("input('Your turn: ')", "OSError: pytest: reading from stdin while output is captured"),
    ("\n    while True: print('x' * 10000)", ""),
    ("import os; os._exit(0)", "It ended the process that tested it (exit code 0)"),
    ("import os; os._exit(3)", "It ended the process that tested it (exit code 3)"),
    ("import ctypes; ctypes.string_at(0)", "It ended the process that tested it (a segmentation fault)"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "It ended the process that tested it (killed"),
    ("import sys; sys.exit(0)", "SystemExit"),
    ("raise KeyboardInterrupt", "The tests could not be run to the end"),
    ("import pytest; pytest.exit('done', 0)", "The tests could not be run to the end"),
    ("import pytest; pytest.skip('skipped')", "Skipped"),
    ("step_bias(self, load, step)", "RecursionError"),
    ("bytearray(1 << 40)", "MemoryError"),
    ("import os; os.close(1); os.close(2); raise ValueError('dark')", "✗"),
])
def test_nothing_an_answer_does_takes_the_grader_down(line, said, monkeypatch):
    monkeypatch.setattr(worker, "PATIENCE", 100)        # this machine may be busy
    report = examine("experts.Gate.step_bias", step_bias(line), seconds=2)
    assert not report.passed
    assert said in str(report) and len(str(report).splitlines()) < 30
    assert examine("experts.Gate.step_bias", step_bias(RIGHT)).passed       # and the next is graded as ever


@pytest.mark.parametrize("line", ["import time; time.sleep(10**6)", "import threading; threading.Event().wait()"])
def test_an_answer_that_waits_without_computing_is_stopped_by_the_clock(line, monkeypatch):
    monkeypatch.setattr(worker, "PATIENCE", 3)
    said = str(examine("experts.Gate.step_bias", step_bias(line), seconds=2))
    assert "It had not ended after 6 seconds, and was stopped. Does it sleep, or wait" in said


@pytest.mark.skipif(sys.platform == "win32", reason="no signal stops a process for a while")
def test_a_right_answer_on_a_machine_with_no_time_for_it_is_right(monkeypatch):
    """Its process stands still for longer than the seconds it may compute."""
    stands_still = f"""
        global stood
        if not stood:
            stood = True
            subprocess.Popen(["sh", "-c", f"sleep 4; kill -CONT {{os.getpid()}}"])
            os.kill(os.getpid(), signal.SIGSTOP)
        {RIGHT}"""
    monkeypatch.setattr(worker, "PATIENCE", 100)
    begun = time.monotonic()
    report = examine("experts.Gate.step_bias", step_bias(stands_still, "import os, signal, subprocess\nstood = False"),
                     seconds=3)
    assert report.passed, str(report)
    assert time.monotonic() - begun > 4


def test_what_an_answer_does_to_its_process_is_gone_with_it():
    spoils = "import minivl2; minivl2.experts.Gate.choose = None; torch.set_num_threads(3)"
    assert not examine("experts.Gate.step_bias", step_bias(spoils)).passed
    looks = f"assert torch.get_num_threads() == 1; assert self.choose; {RIGHT}"
    assert examine("experts.Gate.step_bias", step_bias(looks)).passed


def test_in_a_notebook_the_lines_of_its_cells_are_shown_and_it_goes_on():
    cells = ["import torch\nfrom minivl2.grading import grade\nfrom minivl2.experts import Gate",
             "def share(load):\n    return load.float().mean()",
             "@grade('experts.Gate.step_bias')\ndef step_bias(self, load, step=0.001):\n    self.bias += lode",
             "assert step_bias is Gate.step_bias and step_bias.__module__ == 'minivl2.experts'",
             "@grade('experts.Gate.step_bias', seconds=1)\ndef step_bias(self, load, step=0.001):\n    while True: pass",
             "@grade('experts.Gate.step_bias')\ndef step_bias(self, load, step=0.001):\n"
             "    self.bias += step * (share(load) - load).sign()",
             "assert step_bias is Gate.step_bias and step_bias.__module__ == '__main__'"]
    notebook = v4.new_notebook(cells=[v4.new_code_cell(source) for source in cells])
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    failing, endless, right = ("".join(o.text for o in notebook.cells[i].outputs) for i in (2, 4, 5))
    assert "your code, line 3:   self.bias += lode" in failing
    assert "It had not ended after 1" in endless        # of computing; or 10, on a busy machine
    assert "correct. It passes 2 tests" in right


# ------------------------------------------------------------------------------------------ from a terminal


def pytest_mine(tmp_path, source, *arguments):
    mine = tmp_path / "my_experts.py"
    mine.write_text(textwrap.dedent(source))
    run = subprocess.run([sys.executable, "-m", "pytest", *arguments, "--mine", str(mine), "-p", "no:cacheprovider"],
                         cwd=ROOT, capture_output=True, text=True, timeout=200)
    return run.returncode, run.stdout + run.stderr


def test_pytest_tests_a_file_instead_of_ours(tmp_path):
    status, said = pytest_mine(tmp_path, f"""
        import torch
        from minivl2.experts import Gate
        def step_bias(self, load, step=0.001):
            {RIGHT.replace("+=", "-=")}
        def helper(): pass
        """, "tests/test_experts.py", "-k", "bias_moves or an_mlp")
    assert status == 1 and "1 failed, 2 passed" in said
    assert "Tested yours in place of minivl2.experts.Gate.step_bias\nThe mistake: the wrong way round" in said


@pytest.mark.parametrize("source, tests, said", [
    ("def balanced(): pass", ["tests/test_experts.py"], "defines nothing that minivl2.experts has. It defines: balanced"),
    ("def forward(self, x): pass", ["tests/test_experts.py"], "forward: MLP and Gate and MixtureOfExperts both have one"),
    ("def attend(): pass", ["tests/test_experts.py", "tests/test_attention.py"], "one component at a time"),
    ("def attend(): pass", ["tests/test_goldens.py"], "does not test one module of minivl2"),
])
def test_pytest_says_what_it_cannot_put_in_place(tmp_path, source, tests, said):
    status, out = pytest_mine(tmp_path, source, *tests)
    assert status != 0 and said in out and "Traceback" not in out


# ------------------------------------------------------------------------------------------ in the place of ours


def test_a_name_finds_functions_methods_and_modules_in_folders():
    assert substitute.ours("experts.balance_loss") is experts.balance_loss
    assert substitute.ours("experts.Gate.forward") is experts.Gate.forward
    assert substitute.ours("grading.exercise.same") is exercise.same
    for wrong in ("experts", "nothing.at_all", "experts.Gate.fly", "experts.Door.forward"):
        with pytest.raises(ValueError, match="minivl2 has nothing called"):
            substitute.ours(wrong)


def test_ours_is_replaced_wherever_it_was_imported_by_name_and_comes_back():
    ours, mine = experts.balance_loss, step_bias("pass")
    substitute.put("experts.balance_loss", mine)
    assert model.balance_loss is mine and experts.balance_loss is mine
    assert substitute.ours("experts.balance_loss") is ours
    substitute.put("experts.balance_loss", ours)
    assert model.balance_loss is ours


def test_results_are_the_same_only_if_their_numbers_are():
    x = torch.tensor([1.0, float("nan")])
    assert exercise.same([x, 2.0], [x.double(), 2.0])
    assert exercise.same("ValueError", "ValueError")
    for other in ([x, 2.1], [x], [x[:1], 2.0], "ValueError", None):
        assert not exercise.same([x, 2.0], other)




def test_an_answer_that_calls_itself_calls_itself_and_not_what_had_its_name_before():
    notebook = {"__name__": "__main__"}
    exec("def rate(n):\n    return 0 if n == 0 else 1 + rate(n - 1)", notebook)
    answer, notebook["rate"] = notebook["rate"], lambda n: 99       # the cell ran before: the name is taken
    again = cloudpickle.loads(worker.Job.of("training.optimizers.rate", answer).pickled)
    assert again(3) == 3
