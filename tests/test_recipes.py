"""Every recipe under train/recipes is one that the trainer takes."""

import json
from pathlib import Path
import signal
import subprocess
import time

from absl import flags
import pytest

from bench import recipes
from tests import stamps
from train import bags, caption, classify, detect, label, loop, optim, options, read, segment
from train import startup
from train.data import detection, listing
from zoo import catalog

TRAIN = Path(__file__).parent.parent / "train"
SCRIPTS = {  # by the model's task
  "classify": classify, "detect": detect, "segment": segment, "text": caption,
}  # fmt: skip
OWN = {"pool": bags, "lines": read, "task": label}  # by a flag that no other script has


@pytest.mark.parametrize("path", sorted((TRAIN / "recipes").glob("*.flags")), ids=lambda p: p.stem)
def test_recipe(path):
  values = flags.FlagValues()
  given = [line for line in path.read_text().splitlines() if line.startswith("--")]
  model = next((line[8:] for line in given if line.startswith("--model=")), loop.Config.model)
  flags_of = {line[2:].partition("=")[0] for line in given}
  script = next(
    (own for flag, own in OWN.items() if flag in flags_of), SCRIPTS[catalog.task(model)]
  )
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


def test_recipes_that_are_measured():
  """bench/recipes.md has a row for each, and each is a file that says so."""
  table = (TRAIN.parent / "bench/recipes.md").read_text()
  for name in recipes.RUNS:
    assert f"| {name} " in table
    text = (TRAIN / f"recipes/{name}.flags").read_text()
    assert "bench/recipes.md" in text.replace("\n# ", " ")
  told = {p.stem for p in (TRAIN / "recipes").glob("*.flags") if "recipes.md" in p.read_text()}
  assert told == set(recipes.RUNS)


def test_listings_of_scenes(tmp_path):
  """Each picture's things are counted, and those of a bag are its kinds."""
  scenes = stamps.write(tmp_path, counts=(("train", 9), ("val", 4), ("test", 4)))
  recipes.listings(scenes)
  counts = listing.load(scenes / "counts.csv", "regress")
  splits = detection.load(scenes).splits
  for split, source in splits.items():
    told = counts.splits[split].targets["value"][:, 0]
    assert told.tolist() == [len(objects.labels) for objects in source.objects]
  kinds = listing.load(scenes / "bags.csv", "multilabel", bags=True)
  assert [len(kinds.splits[split].keys) for split in splits] == [3, 1, 1]
  first = {c for objects in splits["train"].objects[: recipes.BAG] for c in objects.labels.tolist()}
  names = detection.load(scenes).classes
  said = kinds.splits["train"].targets["labels"][0]
  assert {kinds.classes[i] for i in said.nonzero()[0]} == {names[c] for c in first}


# Stands in for the programs of a cluster: notes how it was called; SIGTERM ends it with 0.
STUB = """#!/bin/bash
echo "$(basename $0) $*" >> {folder}/called
[ $(basename $0) = scontrol ] && exit
trap 'exit 0' TERM
for i in $(seq {tenths}); do sleep 0.1; done
exit {code}
"""


@pytest.fixture
def launch(tmp_path):
  """(command, what the trainer does) -> (the process, the lines of what it has called)."""

  def start(*command, code=0, finished=True, tenths=0, **environment):
    for name in ("python", "srun", "scontrol"):
      (tmp_path / name).write_text(STUB.format(folder=tmp_path, code=code, tenths=tenths))
      (tmp_path / name).chmod(0o755)
    (tmp_path / "run.json").write_text(json.dumps({"finished": finished}, indent=2))
    environment |= {"PATH": f"{tmp_path}:/usr/bin:/bin", "WORKDIR": str(tmp_path)}
    return subprocess.Popen(list(map(str, command)), env=environment), tmp_path / "called"

  return start


@pytest.mark.parametrize("code, finished", [(0, True), (0, False), (1, False)])
def test_slurm_queues_again_what_is_not_finished(launch, tmp_path, code, finished):
  process, called = launch(
    "bash", TRAIN / "launch/slurm.sbatch", tmp_path, "--data=photographs",
    code=code, finished=finished, SLURM_JOB_ID="7",
  )  # fmt: skip
  assert process.wait(10) == code
  started, *more = called.read_text().splitlines()
  assert started.endswith(f"--workdir={tmp_path} --data=photographs")
  recipe = started.split("--flagfile=")[1].split()[0]
  assert (TRAIN.parent / recipe).exists()
  assert more == (["scontrol requeue 7"] if code == 0 and not finished else [])


@pytest.mark.parametrize(
  "code, finished, stopped, status",
  [(0, True, False, 0), (0, False, False, 1), (3, False, False, 3), (3, False, True, 1)],
)
def test_a_pod_fails_unless_its_run_is_finished(launch, code, finished, stopped, status):
  yaml = pytest.importorskip("yaml", reason="PyYAML comes with tensorflow-datasets' dependencies")
  job = yaml.safe_load((TRAIN / "launch/jobset.yaml").read_text())
  pod = job["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
  (container,) = pod["containers"]
  assert {"WORKDIR", "TFDS_DATA_DIR"} == {part["name"] for part in container["env"]}
  process, called = launch(
    *container["command"], *container["args"],
    code=code, finished=finished, tenths=100 if stopped else 0,
  )  # fmt: skip
  if stopped:
    while not called.exists():
      time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
  assert process.wait(5) == status
  (started,) = called.read_text().splitlines()
  assert started.startswith("python -m train.classify --distributed")
  recipe = started.split("--flagfile=")[1].split()[0]
  assert (TRAIN.parent / recipe).exists()
