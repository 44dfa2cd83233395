"""Winograd's minimal filters F(2x2, 3x3) and F(2x2, 5x5), Lavin and Gray 2015, arXiv:1509.09308.

Two by two values that a kernel of 3x3 makes of 4x4 take 16 multiplications instead of 36, those
that one of 5x5 makes of 6x6 take 36 instead of 100:

  y = outputs([p * k for p, k in zip(pixels(x), kernel(taps))])

Each function makes sums of what lies in a square, row by row, be it numbers or arrays that are
alike, and gives a square of these sums. Those of 5x5 belong to the points 0, 3/4, -3/4, 3/2, -3/2
and infinity, whose rounding is felt as little as that of 3x3: 1e-6 of the largest value.
"""

from collections.abc import Callable, Sequence
import math

NEAR, FAR = 3 / 4, 3 / 2
P, Q = NEAR**2, FAR**2


def kernel(taps: Sequence) -> list:
  """What is multiplied with, 16 or 36, of a kernel's 9 or 25."""
  return _both_ways({9: _three_taps, 25: _five_taps}[len(taps)], taps)


def pixels(values: Sequence) -> list:
  """What is multiplied, of the 16 or 36 values that a kernel meets in four places."""
  return _both_ways({16: _four_pixels, 36: _six_pixels}[len(values)], values)


def outputs(products: Sequence) -> list:
  """The four values, of the 16 or 36 products."""
  return _both_ways({16: _four_products, 36: _six_products}[len(products)], products)


def _both_ways(turn: Callable[..., tuple], square: Sequence) -> list:
  """`turn` of a square's columns, then of the rows."""
  n = math.isqrt(len(square))
  columns = [turn(*square[j::n]) for j in range(n)]
  return [value for row in zip(*columns) for value in turn(*row)]


def _three_taps(a, b, c):
  return a, (a + c) / 2 + b / 2, (a + c) / 2 - b / 2, c


def _four_pixels(a, b, c, d):
  return a - c, b + c, c - b, b - d


def _four_products(a, b, c, d):
  return a + b + c, b - c - d


def _five_taps(a, b, c, d, e):
  near, far = 1 / (2 * P * (P - Q)), 1 / (2 * Q * (Q - P))
  even, odd = near * (a + P * c + P * P * e), near * NEAR * (b + P * d)
  even_far, odd_far = far * (a + Q * c + Q * Q * e), far * FAR * (b + Q * d)
  return a / (P * Q), even + odd, even - odd, even_far + odd_far, even_far - odd_far, e


def _six_pixels(a, b, c, d, e, f):
  even, odd = e - Q * c, NEAR * (d - Q * b)
  even_far, odd_far = e - P * c, FAR * (d - P * b)
  first, last = P * Q * a - (P + Q) * c + e, P * Q * b - (P + Q) * d + f
  return first, even + odd, even - odd, even_far + odd_far, even_far - odd_far, last


def _six_products(a, b, c, d, e, f):
  return a + (b + c) + (d + e), NEAR * (b - c) + FAR * (d - e) + f
