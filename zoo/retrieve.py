"""Pictures that look alike: vectors of them, and exact search among millions of vectors.

A picture's vector is an end point of any network, its mean over places where it has any, at unit
length; the dot product of two is their cosine. A code is the signs of a vector's numbers, packed,
and compared by how many differ. A colour signature is a picture's dominant colours with their
shares; joined with a network's features, each with its weight, as Jing et al. 2015
(arXiv:1505.07647) rank what looks alike.

Search is exact: blocks of the index go through a matrix product and a running top k, so that what
is in memory is one block, whatever the index's length.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
from functools import partial

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

BELL = 20.0  # of L*a*b*; the distance at which two colours count as alike by exp(-1/2)
BLOCK = 1 << 25  # bytes: of a block of the index, and of a block of similarities
CHUNK = 128  # similarities of which the largest is looked at first
WHITE = (0.95047, 1.0, 1.08883)  # of CIE XYZ under D65
RGB_TO_XYZ = (  # IEC 61966-2-1, sRGB
  (0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750),
  (0.0193339, 0.1191920, 0.9503041),
)  # fmt: skip


def embed(model: nn.Module, variables, image, layer: str = "pooled") -> jax.Array:
  """Vectors [b d] of unit length, float32.

  Args:
    image: [b h w c], normalised.
    layer: an end point: [b d], or [b h w d], of which the mean over places is taken.

  Raises:
    ValueError: the model has no such end point, or it is neither of these.
  """
  out = model.apply(variables, image, train=False)
  if layer not in out:
    raise ValueError(f"{type(model).__name__} has no end point {layer!r}; it has {', '.join(out)}")
  y = out[layer].astype(jnp.float32)
  if y.ndim not in (2, 4):
    raise ValueError(f"{layer!r} is {list(y.shape)}; wanted [b d] or [b h w d] to make vectors of")
  return normalized(y.mean((1, 2)) if y.ndim == 4 else y)


def normalized(x: jax.Array) -> jax.Array:
  """Rows at unit length; rows of zeros stay."""
  norm = jnp.sqrt(jnp.sum(jnp.square(x), -1, keepdims=True))
  return x / jnp.where(norm == 0, 1, norm)


def codes(vectors: jax.Array) -> jax.Array:
  """Signs as bits: [n d] -> [n ceil(d/8)] uint8; a bit is 1 where the number is positive."""
  return jnp.packbits(jnp.asarray(vectors) > 0, axis=-1)


def cosine(queries: jax.Array, rows: jax.Array) -> jax.Array:
  """[q d], [n d] of unit length -> [q n] float32; products of float32 are not shortened."""
  exact = jax.lax.Precision.HIGHEST
  return jnp.matmul(queries, rows.T, precision=exact, preferred_element_type=jnp.float32)


def hamming(queries: jax.Array, rows: jax.Array) -> jax.Array:
  """[q b], [n b] uint8 -> [q n] float32: how many bits differ, negative, so that more is nearer."""
  queries, rows = (_words(x) for x in (queries, rows))
  differ = jax.lax.population_count(queries[:, None] ^ rows[None])
  return -jnp.sum(differ.astype(jnp.int32), -1).astype(jnp.float32)


def _words(x: jax.Array) -> jax.Array:
  """[n b] uint8 -> [n ceil(b/4)] uint32."""
  x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % 4)))
  return jax.lax.bitcast_convert_type(x.reshape(len(x), -1, 4), jnp.uint32)


def nearest(
  queries, index: np.ndarray, k: int, *, exclude=None, block: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """(rows [q k] int32, scores [q k] float32) of the index's k nearest to each query, best first.

  Of rows that are equally near the first come first. Where there are fewer than k, the last rows
  are -1 with the score -inf.

  Args:
    queries: [q d] float32 for cosine, or [q b] uint8 codes for Hamming.
    index: [n d] or [n b], of the same type; may be memory-mapped, it is read in blocks.
    exclude: [q] rows that a query does not find, such as itself; -1 for none.
    block: rows at once; None is what `BLOCK` bytes hold.

  Raises:
    ValueError: queries and index do not go together, or k < 1.
  """
  queries = np.asarray(queries)
  faults = []
  if queries.ndim != 2 or index.ndim != 2 or queries.shape[1:] != index.shape[1:]:
    faults.append(f"wanted [q d] and [n d], came {list(queries.shape)} and {list(index.shape)}")
  if (queries.dtype == np.uint8) != (index.dtype == np.uint8):
    faults.append(f"codes are found among codes: came {queries.dtype} and {index.dtype}")
  if k < 1:
    faults.append(f"k is at least 1, not {k}")
  if faults:
    raise ValueError("the search cannot be done: " + "; ".join(faults))
  some = max(1, min(len(queries), 256))  # queries at once
  if block is None:
    row = max(index.shape[1] * index.dtype.itemsize, 4 * some)
    count = -(-len(index) // max(k, BLOCK // row)) or 1
    block = -(len(index) // -(count * CHUNK)) * CHUNK  # alike: little of the last is padding
  block = min(block, max(len(index), 1))
  skipping = exclude is not None
  exclude = np.asarray(exclude) if skipping else np.full(len(queries), -1)
  found = np.full((len(queries), k), -1, np.int32), np.full((len(queries), k), -np.inf, np.float32)
  for at in range(0, len(queries), some):
    part = slice(at, at + some)
    room = some - len(queries[part])
    own = jnp.asarray(np.pad(queries[part], ((0, room), (0, 0))))
    skip = jnp.asarray(np.pad(exclude[part], (0, room), constant_values=-1).astype(np.int32))
    best = jnp.full((some, k), -1, jnp.int32), jnp.full((some, k), -jnp.inf, jnp.float32)
    for start, rows in _blocks(index, block):
      # Waiting keeps blocks from queueing up in memory.
      hide = start + block > len(index) or skipping
      best = jax.block_until_ready(_better(best, own, rows, start, len(index), skip, hide))
    for whole, piece in zip(found, jax.device_get(best)):
      whole[part] = piece[: some - room]
  return found


def _blocks(index: np.ndarray, block: int) -> Iterator[tuple[int, jax.Array]]:
  """(number of the first row, [block ...]), the last filled with zeros."""
  for start in range(0, len(index), block):
    rows = np.asarray(index[start : start + block])
    if room := block - len(rows):
      rows = np.pad(rows, ((0, room), (0, 0)))
    yield start, jax.device_put(rows, may_alias=True)  # a CPU reads a mapped file where it lies


def _highest(scores, k: int):
  """`lax.top_k` of [q n], by way of the maximum of each chunk.

  A number outside the k chunks with the largest maxima has k numbers before it, one of each: larger
  ones, or as large and further to the left.
  """
  q, n = scores.shape
  if n % CHUNK or n // CHUNK <= k:
    return jax.lax.top_k(scores, k)
  chunks = scores.reshape(q, -1, CHUNK)
  _, some = jax.lax.top_k(chunks.max(-1), k)
  some = jnp.sort(some)  # equals stay in their order
  left = jnp.take_along_axis(chunks, some[..., None], 1).reshape(q, -1)
  scores, place = jax.lax.top_k(left, k)
  return scores, jnp.take_along_axis(some, place // CHUNK, 1) * CHUNK + place % CHUNK


@partial(jax.jit, donate_argnums=0, static_argnames="hide")
def _better(best, queries, rows, start, length, exclude, hide: bool):
  """The best so far and those of a block -> the best of both.

  To `hide` rows takes a CPU nearly as long as to compare them: only where there are such.
  """
  like = hamming if queries.dtype == jnp.uint8 else cosine
  number = start + jnp.arange(len(rows), dtype=jnp.int32)
  scores = like(queries, rows)
  if hide:
    hidden = (number >= length) | (number == exclude[:, None])
    scores = jnp.where(hidden, -jnp.inf, scores)
  k = best[0].shape[1]
  scores, place = _highest(scores, min(k, len(rows)))
  # top_k puts the first of equals first, and the earlier blocks come first.
  rows = jnp.concatenate([best[0], jnp.where(scores == -jnp.inf, -1, number[place])], 1)
  scores, place = jax.lax.top_k(jnp.concatenate([best[1], scores], 1), k)
  return jnp.take_along_axis(rows, place, 1), scores


def duplicates(index: np.ndarray, least: float, *, limit: int = 50) -> list[tuple[int, int, float]]:
  """(row, later row, score) of pairs at least that alike, the most alike first.

  Args:
    index: as of `nearest`.
    least: cosine, or for codes the negative of the bits that may differ.
    limit: how many partners of a row are looked at.
  """
  pairs, k = {}, min(limit, max(len(index) - 1, 1))
  for start in range(0, len(index), 1024):
    own = np.arange(start, min(start + 1024, len(index)))
    found = nearest(np.asarray(index[own[0] : own[-1] + 1]), index, k, exclude=own)
    for i, others, near in zip(own.tolist(), *(part.tolist() for part in found)):
      for j, score in zip(others, near):
        if j >= 0 and score >= least:
          pairs.setdefault((min(i, j), max(i, j)), score)
  return sorted(((i, j, s) for (i, j), s in pairs.items()), key=lambda p: (-p[2], p[0], p[1]))


def lab(pixels) -> jax.Array:
  """[... 3] uint8 sRGB -> [... 3] CIE L*a*b* under D65."""
  x = jnp.asarray(pixels, jnp.float32) / 255
  linear = jnp.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
  xyz = jnp.matmul(linear, jnp.array(RGB_TO_XYZ).T, precision="highest") / jnp.array(WHITE)
  f = jnp.where(xyz > (6 / 29) ** 3, jnp.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
  x, y, z = jnp.moveaxis(f, -1, 0)
  return jnp.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1)


def salience(pixels) -> jax.Array:
  """[h w 3] uint8 -> [h w]: how far a pixel's neighbourhood is from the picture's mean colour.

  Achanta et al. 2009, with a box of 5x5 pixels where they have a Gaussian.
  """
  colors = lab(pixels)
  edge = jnp.pad(colors, ((2, 2), (2, 2), (0, 0)), mode="edge")
  h, w = colors.shape[:2]
  near = sum(edge[i : i + h, j : j + w] for i in range(5) for j in range(5)) / 25
  return jnp.sqrt(jnp.square(near - colors.mean((0, 1))).sum(-1))


@partial(jax.jit, static_argnames=("colors", "rounds"))
def signature(pixels, weight=None, *, colors: int = 5, rounds: int = 10) -> jax.Array:
  """Dominant colours [colors 4] of a picture: L a b and share, the largest share first.

  By k-means, which starts from the colour nearest the mean and goes on with the one farthest from
  those it has, so that the same picture always has the same colours.

  Args:
    pixels: [h w 3] uint8.
    weight: [h w] of each pixel, such as how salient it is; None counts all alike.
  """
  points = lab(pixels).reshape(-1, 3)
  weight = jnp.ones(len(points)) if weight is None else jnp.asarray(weight, jnp.float32).ravel()
  weight = weight / jnp.maximum(weight.sum(), 1e-12)
  apart = lambda centre: jnp.square(points - centre).sum(-1)
  first = points[jnp.argmin(apart(weight @ points))]
  real = weight > 0

  def start(i, state):
    centres, nearest = state
    centre = points[jnp.argmax(jnp.where(real, nearest, -1))]
    return centres.at[i].set(centre), jnp.minimum(nearest, apart(centre))

  centres = jnp.zeros((colors, 3)).at[0].set(first)
  centres, _ = jax.lax.fori_loop(1, colors, start, (centres, apart(first)))

  def members(centres):
    own = jnp.argmin(jax.vmap(apart)(centres), 0)
    return (own == jnp.arange(colors)[:, None]) * weight  # [colors n]

  def move(_, centres):
    share = members(centres)
    total = share.sum(1, keepdims=True)
    return jnp.where(total > 0, share @ points / jnp.maximum(total, 1e-12), centres)

  centres = jax.lax.fori_loop(0, rounds, move, centres)
  share = members(centres).sum(1)
  order = jnp.argsort(-share, stable=True)
  return jnp.concatenate([centres, share[:, None]], 1)[order]


@jax.jit
def color_vectors(signatures) -> jax.Array:
  """Signatures [n colors 4] -> vectors [n d] of unit length, whose cosine is their likeness.

  A signature is a sum of bells around its colours, sampled on a grid of L*a*b*. The product of two
  bells falls as exp(-distance^2 / (2 BELL^2)), so near colours count as alike and far ones as
  different: the quadratic-form distance of Hafner et al. 1995, as one dot product.
  """
  steps = [np.arange(low, high, BELL) for low, high in ((-20, 121), (-90, 111), (-110, 111))]
  grid = jnp.asarray(np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, 3), jnp.float32)
  signatures = jnp.asarray(signatures, jnp.float32)

  def add(i, total):
    centre, share = signatures[:, i, None, :3], signatures[:, i, 3:]
    return total + share * jnp.exp(-jnp.square(centre - grid).sum(-1) / BELL**2)

  empty = jnp.zeros((len(signatures), len(grid)))
  return normalized(jax.lax.fori_loop(0, signatures.shape[1], add, empty))


@dataclasses.dataclass(frozen=True, eq=False)
class Joined:
  """Features and colours as one index, made block by block: scores are their weighted mean."""

  features: np.ndarray  # [n d] of unit length
  signatures: np.ndarray  # [n colors 4]
  colors: float  # weight of the colours, 0..1; the features have the rest

  def __post_init__(self):
    if not 0 <= self.colors <= 1 or len(self.features) != len(self.signatures):
      raise ValueError(
        f"wanted a weight of colours within 0..1 and as many signatures as features, came "
        f"{self.colors}, {len(self.signatures)} and {len(self.features)}"
      )

  @property
  def shape(self) -> tuple[int, int]:
    return len(self.features), self[:0].shape[1]

  dtype = np.dtype(np.float32)
  ndim = 2

  def __len__(self) -> int:
    return len(self.features)

  def __getitem__(self, rows) -> np.ndarray:
    own = (self.features[rows], color_vectors(np.asarray(self.signatures[rows])))
    roots = np.sqrt([1 - self.colors, self.colors]).astype(np.float32)
    return np.concatenate([np.asarray(part) * root for part, root in zip(own, roots)], -1)


def measures(
  found: np.ndarray, queries: np.ndarray, labels: np.ndarray, ks: Sequence[int] = (1, 5, 10)
) -> Mapping[str, float]:
  """How good answers are: means over the queries that have a right answer.

  recall@k: the share of queries with a right one among the first k (Jegou et al. 2011);
  precision@k: the share of right ones among the first k; map: the mean over a query's right
  answers of the precision where each stands, of as many as a list of that length can hold.

  Args:
    found: [q n] rows, best first; -1 is none.
    queries: [q] labels of the queries, which are no rows of the index.
    labels: [rows] labels of the index.
  """
  found, queries, labels = np.asarray(found), np.asarray(queries), np.asarray(labels)
  right = (found >= 0) & (labels[found] == queries[:, None])
  return _measures(right, _counts(queries, labels), ks)


def leave_one_out(
  index: np.ndarray, labels: np.ndarray, ks: Sequence[int] = (1, 5, 10), depth: int = 10_000
) -> Mapping[str, float]:
  """`measures` with each row of the index as a query among the others, and "queries".

  Args:
    depth: how many answers count at most; the index has its length less one.
  """
  labels = np.asarray(labels)
  counts = _counts(labels, labels) - 1
  asked = np.flatnonzero(counts > 0)
  if not len(asked):
    raise ValueError("no class has two pictures, so no query has a right answer")
  total: dict[str, float] = {}
  for start in range(0, len(asked), 64):
    part = asked[start : start + 64]
    rows, _ = nearest(
      np.asarray(index[part]), index, min(depth, len(index) - 1), exclude=part
    )  # fmt: skip
    right = (rows >= 0) & (labels[rows] == labels[part][:, None])
    for name, value in _measures(right, counts[part], ks).items():
      total[name] = total.get(name, 0.0) + value * len(part)
  return {"queries": len(asked)} | {name: value / len(asked) for name, value in total.items()}


def _counts(queries: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Of each query: how many rows have its label."""
  names, number = np.unique(labels, return_counts=True)
  place = np.clip(np.searchsorted(names, queries), 0, len(names) - 1)
  return np.where(names[place] == queries, number[place], 0)


def _measures(right: np.ndarray, counts: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
  asked = counts > 0
  right, counts = right[asked], counts[asked]
  if not len(right):
    raise ValueError("no query has a right answer in the index")
  hits = right.cumsum(1)
  precision = hits / np.arange(1, right.shape[1] + 1)
  found = {f"recall@{k}": float(right[:, :k].any(1).mean()) for k in ks}
  found |= {f"precision@{k}": float(right[:, :k].sum(1).mean() / k) for k in ks}
  # A list that was cut at its length cannot hold more right ones than that.
  most = np.minimum(counts, right.shape[1])
  return found | {"map": float(((precision * right).sum(1) / most).mean())}
