"""Composes scenes of photographed things, with boxes, masks and captions, to train and to test on.

  apt-get download tuxpaint-stamps-default mate-backgrounds
  for package in *.deb; do dpkg -x $package stamps; done
  python -m train.scenes --stamps=stamps/usr/share/tuxpaint/stamps \\
    --backgrounds=stamps/usr/share/backgrounds/mate/nature --out=scenes

What --out holds is described in train/data/scenes.py: COCO, YOLO, VOC and Karpathy files side by
side.  The same flags make the same files.  The pictures are under the licences of those packages.
"""

import dataclasses
from pathlib import Path

from train import options, output
from train.data import scenes
from train.options import option


@dataclasses.dataclass(frozen=True)
class Config:
  out: str = option("", "Folder to write; must be new.")
  stamps: str = option("", "Folder of cut-outs: tuxpaint/stamps of Debian's package.")
  backgrounds: str = option("", "Folder of photographs to put them on, as JPEG files.")
  scenes: int = option(400, "For training.", lower_bound=1)
  val: int = option(60, "Scenes of the same cut-outs, to validate on.", lower_bound=1)
  test: int = option(60, "Scenes of cut-outs and backgrounds that are held out.", lower_bound=1)
  size: int = option(160, "Pixels of the square pictures.", lower_bound=48)
  seed: int = option(0, "Of what stands where.", lower_bound=0)


def main(_, config: Config) -> None:
  faults = [
    f"--{name} is missing" for name in ("out", "stamps", "backgrounds") if not getattr(config, name)
  ]
  if config.out and (said := output.taken(Path(config.out))):
    faults.append(said)
  if faults:
    raise ValueError("\n".join([*faults, "python -m train.scenes --help says where pictures are"]))
  counts = {"train": config.scenes, "val": config.val, "test": config.test}
  with output.Output(Path(config.out)) as folder:
    composers = scenes.composers(Path(config.stamps), Path(config.backgrounds), config.size)
    scenes.write(folder.part, composers, counts, config.seed)
    folder.appear()
  print(f"{sum(counts.values())} scenes of {len(scenes.CLASSES)} classes: {folder.out.resolve()}")


if __name__ == "__main__":
  options.run(main, Config, stopped="stopped; nothing was written")
