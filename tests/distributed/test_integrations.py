"""The examples for Lightning, Accelerate and Hugging Face's Trainer, on two ranks, and scripts that use these libraries under `commpress run`."""

import importlib.util
import pathlib
import re

import pytest
from _torchrun import ROOT, torchrun

EXAMPLES = ROOT / "examples"


def needs(*names: str) -> None:
    """Skips, with a printed reason, where a library is not installed."""
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        reason = f"{' and '.join(missing)} not installed: `pip install 'commpress[integrations]'`"
        print(f"skipped: {reason}")
        pytest.skip(reason)


OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


def compressed(done) -> tuple[int, int]:
    """Step, and coordinates that were compressed, of the example's last line."""
    assert done.returncode == 0, done.stderr[-4000:]
    ((step, count),) = re.findall(r"^step (\d+), compressed coordinates: (\d+)$", done.stdout, flags=re.MULTILINE)
    return int(step), int(count)


def test_lightning(tmp_path: pathlib.Path) -> None:
    needs("lightning")
    words = [str(EXAMPLES / "lightning_ddp.py"), "--out", str(tmp_path)]
    step, count = compressed(torchrun([*words, "--steps", "8"], cwd=tmp_path))
    assert step == 8 and count > 0
    resume = ["--steps", "16", "--resume", str(tmp_path / "last.ckpt")]
    step, count = compressed(torchrun([*words, *resume], cwd=tmp_path))
    assert step == 16 and count > 0  # the state goes on at step 8


@pytest.mark.parametrize(
    ("name", "library"), [("accelerate_ddp.py", "accelerate"), ("transformers_trainer.py", "transformers")]
)
def test_hugging_face(name: str, library: str, tmp_path: pathlib.Path) -> None:
    needs(library, "accelerate")
    words = [str(EXAMPLES / name), "--out", str(tmp_path / "run")]
    step, count = compressed(torchrun([*words, "--steps", "4"], cwd=tmp_path, env=OFFLINE))
    assert step == 4 and count > 0
    steps = "4" if library == "accelerate" else "8"  # of this run, or of both
    step, again = compressed(torchrun([*words, "--steps", steps, "--resume"], cwd=tmp_path, env=OFFLINE))
    assert step == 8 and again > 0


UNMODIFIED = """
import lightning, torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset

class One(torch.nn.Linear): pass
class Two(torch.nn.Linear): pass
class Three(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(64, 64)
    def training_step(self, batch, _):
        return self.net(batch[0]).square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

data = DataLoader(TensorDataset(torch.randn(64, 64)), 8)
fabric = lightning.Fabric(accelerator="cpu", devices=2, strategy="ddp")
fabric.launch()
model, optimizer = fabric.setup(One(64, 64), torch.optim.SGD(One(64, 64).parameters(), 0.1))
for _ in range(3):
    fabric.backward(model(torch.randn(8, 64)).square().mean())
accelerator = Accelerator(cpu=True)
model, loader = accelerator.prepare(Two(64, 64), data)
for batch, in loader:
    accelerator.backward(model(batch).square().mean())
trainer = lightning.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_steps=3, logger=False, enable_progress_bar=False,
                            enable_model_summary=False, enable_checkpointing=False)
trainer.fit(Three(), data)
fabric.print("usual output")
"""


def test_models_that_a_library_wraps_under_commpress_run(tmp_path: pathlib.Path) -> None:
    needs("lightning", "accelerate")
    script = tmp_path / "train.py"
    script.write_text(UNMODIFIED)
    done = torchrun(["-m", "commpress.run", "--bits", "2", str(script)], cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == "usual output"
    said = re.findall(r"^commpress run: (.*)$", done.stderr, flags=re.MULTILINE)
    assert len(said) == 3, said
    for line, name, steps in zip(said, ("One", "Two (model 2)", "Three (model 3)"), (3, 4, 3), strict=True):
        assert line.startswith(f"{name}: hadamard+lloyd:2 on 2 ranks, {steps} steps"), line


@pytest.mark.nightly  # what Accelerate wraps is tested above, and that is what Trainer uses
def test_an_unmodified_trainer_under_commpress_run(tmp_path: pathlib.Path) -> None:
    needs("transformers", "accelerate")
    source = (EXAMPLES / "transformers_trainer.py").read_text()
    plain = source.replace("    trainer.add_callback(Compression(trainer, bits=2.0))\n", "")
    assert plain != source
    script = tmp_path / "train.py"
    script.write_text(plain)
    words = ["-m", "commpress.run", "--bits", "2", str(script), "--out", str(tmp_path / "run"), "--steps", "3"]
    done = torchrun(words, cwd=tmp_path, env=OFFLINE)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "GPT2LMHeadModel: hadamard+lloyd:2 on 2 ranks, 3 steps" in done.stderr
