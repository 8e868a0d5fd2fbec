"""`commpress run` in this process: how the script is run, and what is said where there is nothing to compress."""

import pathlib
import sys

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from commpress.cli import main as commpress
from commpress.run.__main__ import main

SCRIPT = """
import sys
print(sys.argv, __name__, __file__, __spec__, __package__, sys.path[0])
assert sys.modules["__main__"].__dict__ is globals()
"""


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch):
    """What running a script changes in its process."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])
    monkeypatch.delenv("RANK", raising=False)


@pytest.fixture
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def script(folder: pathlib.Path, source: str) -> str:
    path = folder / "train.py"
    path.write_text(source)
    return str(path)


@pytest.fixture(autouse=True)
def own_excepthook(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's own: a process group of an earlier test leaves torch's, which puts the rank before each line."""
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)


@pytest.mark.parametrize("start", [main, lambda words: commpress(["run", *words])])
def test_the_script_gets_its_own_arguments_and_is_main(start, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    script(tmp_path, SCRIPT)
    assert start(["--bits", "2", "train.py", "--bits", "9", "-m", "--quiet", "--", "x"]) == 0
    out, err = capsys.readouterr()
    assert out == (
        f"['train.py', '--bits', '9', '-m', '--quiet', '--', 'x'] __main__ {tmp_path / 'train.py'} None None {tmp_path}\n"
    )
    assert "made no DistributedDataParallel model" in err


def test_a_module_is_run_as_python_would(tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "package_of_script").mkdir()
    (tmp_path / "package_of_script" / "__init__.py").touch()
    (tmp_path / "package_of_script" / "other.py").write_text("value = 3\n")
    (tmp_path / "package_of_script" / "train.py").write_text(
        "import sys\nfrom . import other\nprint(sys.argv, __name__, __package__, other.value, sys.path[0])\n"
    )
    assert main(["--quiet", "-m", "package_of_script.train", "--epochs", "3"]) == 0
    path = tmp_path / "package_of_script" / "train.py"
    assert capsys.readouterr().out == f"['{path}', '--epochs', '3'] __main__ package_of_script 3 {tmp_path}\n"


def test_a_folder_is_run_by_its_main(tmp_path, capsys) -> None:
    (tmp_path / "__main__.py").write_text("print(__name__)\n")
    assert main([str(tmp_path)]) == 0
    assert capsys.readouterr().out == "__main__\n"


@pytest.mark.parametrize("code", [0, 3, "words"])
def test_exit_codes_pass(code, tmp_path) -> None:
    with pytest.raises(SystemExit) as ended:
        main([script(tmp_path, f"import sys\nsys.exit({code!r})\n")])
    assert ended.value.code == code


@pytest.mark.parametrize("start", [main, lambda words: commpress(["run", *words])])
@pytest.mark.parametrize("raised", ["OSError", "ValueError", "commpress.errors.SpecError"])
def test_an_exception_is_shown_as_the_scripts_own(start, raised, tmp_path, capsys) -> None:
    path = script(tmp_path, f"import commpress\ndef f():\n    raise {raised}('of the script')\nf()\n")
    assert start([path]) == 1
    err = capsys.readouterr().err
    assert err == (
        f'Traceback (most recent call last):\n  File "{path}", line 4, in <module>\n    f()\n'
        f"  File \"{path}\", line 3, in f\n    raise {raised}('of the script')\n{raised}: of the script\n"
    )


def test_a_syntax_error_is_shown_as_the_scripts_own(tmp_path, capsys) -> None:
    path = script(tmp_path, "def f(:\n")
    assert main([path]) == 1
    assert capsys.readouterr().err.startswith(f'  File "{path}", line 1\n')


def test_an_interrupt_passes(tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        main([script(tmp_path, "raise KeyboardInterrupt\n")])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere.py"], "there is no script 'nowhere.py'"),
        (["--codec", "nonsense", "train.py"], "nonsense"),
        (["--bits", "-1", "train.py"], "bits"),
        (["--check-every", "-1", "train.py"], "check_every"),
        ([], "script"),
    ],
)
def test_wrong_usage(words, said, tmp_path, capsys, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    script(tmp_path, "print('ran')\n")
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def test_only_rank_0_complains(tmp_path, capsys, monkeypatch) -> None:
    path = script(tmp_path, "")
    monkeypatch.setenv("RANK", "1")
    assert main([path]) == 0
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("RANK", "0")
    assert main(["--quiet", path]) == 0
    assert "made no DistributedDataParallel model" in capsys.readouterr().err


@pytest.mark.usefixtures("group")
@pytest.mark.parametrize("quiet", [False, True])
def test_nothing_stays_behind(quiet, tmp_path, capsys) -> None:
    """The hooks are there while the script runs, and no longer."""
    path = script(
        tmp_path,
        "import torch\nfrom torch.nn.parallel import DistributedDataParallel as DDP\n"
        "model = DDP(torch.nn.Linear(3, 2))\nmodel(torch.ones(1, 3)).sum().backward()\nfrom commpress import ddp_hook\n"
        "assert [hook for hook, _ in model._comm_hooks] == [ddp_hook]\nassert not model._forward_pre_hooks\n",
    )
    assert main([*(["--quiet"] if quiet else []), path]) == 0
    said = "" if quiet else "commpress run: Linear: 1 steps on one rank, nothing to send\n"
    assert capsys.readouterr().err == said
    model = DistributedDataParallel(torch.nn.Linear(3, 2))
    model(torch.ones(1, 3)).sum().backward()
    assert model._comm_hooks == []


@pytest.mark.usefixtures("group")
def test_a_model_that_is_saved_or_copied_before_it_trains(tmp_path, capsys) -> None:
    path = script(
        tmp_path,
        "import copy, io, torch\nfrom torch.nn.parallel import DistributedDataParallel as DDP\n"
        "model = DDP(torch.nn.Linear(3, 2))\nkept = io.BytesIO()\ntorch.save(model, kept)\ntwin = copy.deepcopy(model)\n"
        "twin(torch.ones(1, 3)).sum().backward()\nassert len(twin._comm_hooks) == 1 and not model._comm_hooks\n"
        "kept.seek(0)\nloaded = torch.load(kept, weights_only=False)\nassert not loaded._comm_hooks\n"
        "loaded(torch.ones(1, 3)).sum().backward()\n",
    )
    assert main([path]) == 0, capsys.readouterr().err
    err = capsys.readouterr().err
    assert "Linear: no forward pass of training went through it" in err
    assert "Linear (model 2): 1 steps" in err
    assert "Traceback" not in err
