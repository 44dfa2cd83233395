"""Every recipe under train/recipes is one that the trainer takes."""

from pathlib import Path
import subprocess

from absl import flags
import pytest

from train import caption, classify, detect, label, loop, optim, options, segment, startup
from zoo import catalog

TRAIN = Path(__file__).parent.parent / "train"
SCRIPTS = {  # by the model's task
  "classify": classify, "detect": detect, "segment": segment, "text": caption,
}  # fmt: skip


@pytest.mark.parametrize("path", sorted((TRAIN / "recipes").glob("*.flags")), ids=lambda p: p.stem)
def test_recipe(path):
  values = flags.FlagValues()
  given = [line for line in path.read_text().splitlines() if line.startswith("--")]
  model = next((line[8:] for line in given if line.startswith("--model=")), loop.Config.model)
  asks = any(line.startswith("--task=") for line in given)
  script = label if asks else SCRIPTS[catalog.task(model)]
  configs = (startup.Config, loop.Config, optim.Config, script.Config)
  readers = [options.define(config, values) for config in configs]
  values(["program", f"--flagfile={path}"])
  _, run, optimizer, own = (read() for read in readers)
  assert path.read_text().startswith("#") and run.model in catalog.VARIANTS
  rate = optim.schedule(optimizer, total=1000, warmup=round(optimizer.warmup))
  assert optimizer.lr == pytest.approx(max(float(rate(i)) for i in range(9)))
  assert float(rate(999)) < optimizer.lr or optimizer.plateau
  named = options.as_dict(run, optimizer, own)
  assert all(line[2:].partition("=")[0] in named for line in given)


def test_launchers():
  script = TRAIN / "launch/slurm.sbatch"
  subprocess.run(["bash", "-n", script], check=True)
  assert "imagenet_resnet50.flags" in script.read_text()
  yaml = pytest.importorskip("yaml", reason="PyYAML comes with tensorflow-datasets' dependencies")
  job = yaml.safe_load((TRAIN / "launch/jobset.yaml").read_text())
  pod = job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
  (container,) = pod["containers"]
  recipe = container["args"][1].removeprefix("--flagfile=")
  assert (TRAIN.parent / recipe).exists() and container["command"][1:] == ["-m", "train.classify"]
