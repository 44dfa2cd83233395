"""Pictures for people, as PNG bytes: curves, confusion matrices, maps laid over photographs.

Matplotlib is imported by the first that needs it: that takes a third of a second.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import io
import warnings

import cv2
import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

COLORS = ("#2f6690", "#d98032", "#3b8a5a", "#8d5fa8", "#b9493c", "#5d6878")
INK, SOFT, LINE = "#1c2430", "#5d6878", "#e3e7ec"
NAMED = 60  # classes up to which a confusion matrix carries names
COUNTED = 25  # and counts
RC = {
  "font.size": 9, "text.color": INK, "axes.edgecolor": LINE, "axes.labelcolor": SOFT,
  "axes.titlecolor": INK, "xtick.color": SOFT, "ytick.color": SOFT, "axes.spines.top": False,
  "axes.spines.right": False, "grid.color": LINE, "legend.frameon": False,
}  # fmt: skip


def curve(
  runs: Mapping[str, Sequence[tuple[int, str, str, float]]], name: str, *, share: bool = False
) -> bytes:
  """The measure `name` over steps, of all runs. {run: [(step, split, name, value)]}.

  Args:
    share: it lies in 0..1 and is written in percent.
  """
  with _figure((5.4, 3.7)) as (figure, out):
    axes = figure.subplots()
    axes.set_xlabel("step")
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    for i, rows in enumerate(runs.values()):
      _curve(axes, rows, name, COLORS[i % len(COLORS)])
    axes.set_ylim(0, 1.02 if share else None)
    if share:
      _in_percent(axes.yaxis)
    lines = [axes.plot([], color=COLORS[i % len(COLORS)])[0] for i in range(len(runs))]
    lines += [axes.plot([], color=SOFT, marker=m, lw=w, ms=4)[0] for m, w in KINDS.values()]
    # Matplotlib leaves out of a legend what begins with an underscore.
    labels = [shorten(run, 40).replace("_", " ", run.startswith("_")) for run in runs]
    legend = figure.legend(
      lines, [*labels, *KINDS], loc="outside upper left", ncols=min(len(lines), 4), fontsize=8.5
    )
    for text in legend.get_texts():
      text.set_parse_math(False)
  return out.getvalue()


KINDS = {"training": ("", 0.8), "validation": ("o", 1.8)}


def _curve(axes, rows, name: str, color: str) -> None:
  for split, alpha, (marker, width) in zip(("train", "val"), (0.5, 1.0), KINDS.values()):
    points = [(step, value) for step, at, what, value in rows if (at, what) == (split, name)]
    if points:
      marker = marker if len(points) <= 40 else ""
      axes.plot(*zip(*points), color=color, lw=width, marker=marker, ms=4, alpha=alpha)


def confusion(counts: np.ndarray, classes: Sequence[str]) -> bytes:
  """Matrix of counts [true, answered], coloured by row; named and counted if it can be read."""
  n = len(classes)
  share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
  named = n <= NAMED
  longest = max((len(shorten(c)) for c in classes), default=1) if named else 0
  side = min(max(0.36 * n, 3.0), 10.0)
  with _figure((side + 0.075 * longest + 1.2, side + 0.075 * longest + 0.4)) as (figure, out):
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="equal")
    axes.set_xlabel("answer")
    axes.set_ylabel("truth")
    if named:
      labels, size = [shorten(c) for c in classes], 9 if n <= 30 else 6.5
      axes.set_xticks(range(n), labels, rotation=90, fontsize=size, parse_math=False)
      axes.set_yticks(range(n), labels, fontsize=size, parse_math=False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    if n <= COUNTED:
      for row, column in zip(*np.nonzero(counts)):
        dark = share[row, column] > 0.55
        axes.text(
          column, row, str(counts[row, column]), ha="center", va="center", fontsize=8,
          color="white" if dark else INK,
        )  # fmt: skip
    bar = figure.colorbar(image, shrink=0.5, aspect=25, pad=0.02)
    _in_percent(bar.ax.yaxis)
    bar.set_label("share of the row")
    bar.outline.set_visible(False)
  return out.getvalue()


def rates(tried: np.ndarray, losses: np.ndarray, curve: np.ndarray, chosen: float) -> bytes:
  """Losses over the learning rates tried, their smoothed curve and the rate to take."""
  with _figure((5.4, 3.7)) as (figure, out):
    axes = figure.subplots()
    axes.plot(tried, losses, ".", color=SOFT, ms=3)
    axes.plot(tried[: len(curve)], curve, color=COLORS[0])
    axes.axvline(chosen, color=COLORS[1], lw=1)
    axes.annotate(f" {chosen:.2g}", (chosen, curve.max()), color=COLORS[1], va="top")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss")
    axes.set_ylim(None, curve[0] + (curve[0] - curve.min()))
    axes.grid(axis="y")
  return out.getvalue()


def calibration(bins: Sequence[tuple[int, float, float]]) -> bytes:
  """Accuracy over confidence of bins (count, mean confidence, accuracy), beside the diagonal."""
  filled = [(sure, right, n) for n, sure, right in bins if n]
  most = max(n for *_, n in filled)
  with _figure((4.2, 4.0)) as (figure, out):
    axes = figure.subplots()
    axes.plot((0, 1), (0, 1), color=INK, lw=1, alpha=0.4)
    axes.scatter(
      [sure for sure, *_ in filled], [right for _, right, _ in filled],
      s=[12 + 200 * n / most for *_, n in filled], alpha=0.75,
    )  # fmt: skip
    axes.set(xlim=(0, 1), ylim=(-0.02, 1.02), xlabel="confidence", ylabel="share that is right")
  return out.getvalue()


def precision_recall(
  curves: Mapping[str, tuple[Sequence[float], Sequence[float]]],
) -> bytes:
  """Precision over recall, (recall, precision) of each class; up to six are told apart."""
  with _figure((5.4, 4.2)) as (figure, out):
    axes = figure.subplots()
    axes.grid()
    axes.set_axisbelow(True)
    few = len(curves) <= len(COLORS)
    for i, (name, (recall, precision)) in enumerate(curves.items()):
      axes.step(
        [0, *recall], [precision[0] if len(precision) else 0, *precision], where="post",
        color=COLORS[i] if few else SOFT, lw=1.5 if few else 0.8, alpha=1 if few else 0.5,
        label=shorten(name).replace("_", " ", name.startswith("_")),
      )  # fmt: skip
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    if few and curves:
      for text in axes.legend(loc="lower left", fontsize=8.5).get_texts():
        text.set_parse_math(False)
  return out.getvalue()


def boxes(
  image: np.ndarray, rows: Sequence[tuple[Sequence[float], str, str]], *, least: int = 320
) -> np.ndarray:
  """[h w 3] uint8 with boxes drawn over it; a small picture is enlarged to `least` pixels before.

  Args:
    rows: (x0 y0 x1 y1 in pixels of the picture, words or "", color as #rrggbb), the last on top.
  """
  height, width = image.shape[:2]
  factor = max(1.0, least / max(height, width))
  picture = Image.fromarray(image)
  if factor > 1:
    picture = picture.resize((round(width * factor), round(height * factor)))
  draw = ImageDraw.Draw(picture)
  line = max(2, round(max(picture.size) / 320))
  font = ImageFont.load_default(max(11, round(max(picture.size) / 45)))
  for box, words, color in rows:
    x0, y0, x1, y1 = (factor * float(v) for v in box)
    draw.rectangle((x0, y0, max(x1 - 1, x0), max(y1 - 1, y0)), outline=color, width=line)
    if words:
      left, top, right, bottom = draw.textbbox((0, 0), words, font)
      w, h = right - left + 6, bottom - top + 5
      x, y = min(x0, picture.width - w), y0 - h if y0 >= h else y0
      x = max(x, 0)
      draw.rectangle((x, y, x + w, y + h), fill=color)
      draw.text((x + 3 - left, y + 2 - top), words, "white", font)
  return np.asarray(picture)


def tinted(
  image: np.ndarray, rows: Iterable[tuple[np.ndarray, tuple[int, int], str]]
) -> np.ndarray:
  """[h w 3] uint8 under masks, the last on top.

  Args:
    rows: (mask of 0 and 1, where in the picture its top left is as (y, x), color as #rrggbb).
  """
  out = np.array(image)
  for mask, (top, left), color in rows:
    part = out[top : top + mask.shape[0], left : left + mask.shape[1]]
    there = np.asarray(mask, bool)
    part[there] = np.rint(0.55 * part[there] + 0.45 * np.float32(ImageColor.getrgb(color)))
  return out


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
  """[h w 3] uint8 of a photograph under its map [h' w'] of any scale; what is low stays visible."""
  peak = max(float(heat.max()), 1e-12)
  small = Image.fromarray(np.asarray(np.clip(heat / peak, 0, 1), np.float32))
  full = np.asarray(small.resize(image.shape[1::-1], Image.Resampling.BICUBIC)).clip(0, 1)
  color = colored(full, "turbo")
  grey = image.mean(-1, keepdims=True) * 0.5 + image * 0.5
  weight = 0.15 + 0.5 * full[..., None]
  return np.rint(grey * (1 - weight) + color * weight).clip(0, 255).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
  """[h w 3] uint8 -> the bytes of a PNG: a tenth more than the least, in a tenth of the time."""
  return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def shorten(text: str, length: int = 24) -> str:
  text = "".join(c if c.isprintable() else " " for c in text)
  return text if len(text) <= length else text[: length - 1] + "…"


def colored(values: np.ndarray, scale: str) -> np.ndarray:
  """[...] in 0..1 -> [... 3] in 0..255, by a colour scale of Matplotlib's."""
  import matplotlib

  return matplotlib.colormaps[scale](values)[..., :3] * 255


def _in_percent(axis) -> None:
  from matplotlib.ticker import PercentFormatter

  axis.set_major_formatter(PercentFormatter(1, decimals=0))


@contextlib.contextmanager
def _figure(inches: tuple[float, float]) -> Iterator[tuple["Figure", io.BytesIO]]:  # noqa: F821
  """An empty figure, and where its PNG stands afterwards. No window, no global state."""
  import matplotlib
  from matplotlib.figure import Figure

  out = io.BytesIO()
  with matplotlib.rc_context(RC), warnings.catch_warnings():
    # A class named in a script that the font lacks is drawn as boxes; the page's tables have it.
    warnings.filterwarnings("ignore", message="Glyph .* missing")
    figure = Figure(figsize=inches, dpi=110, layout="constrained")
    yield figure, out
    figure.savefig(out, format="png")
