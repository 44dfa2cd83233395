"""How its authors' code names an Attention-OCR's arrays in TensorFlow."""

import dataclasses

import numpy as np

from convert.engine import Operation, squeeze_keras
from convert.rules import slim
from convert.rules.inception_v3 import SLIM_BRANCH, slim_branch

TRUNK = "^AttentionOcr_v1/conv_tower_fn/INCE/"
DECODER = "^AttentionOcr_v1/sequence_logit_fn/SQLR/LSTM/attention_decoder/"


def _swapped(array: np.ndarray) -> np.ndarray:
  """An LSTM's gates i, j, f, o as i, f, j, o, and back."""
  gates = array.reshape(*array.shape[:-1], 4, -1)
  return gates[..., [0, 2, 1, 3], :].reshape(array.shape)


SWAP = Operation(_swapped, lambda array, shape: _swapped(array))
# [n] -> [n 1].
COLUMN = Operation(lambda array: array[:, None], lambda array, shape: array[:, 0])
SLIM = dataclasses.replace(
  slim(
    (TRUNK + SLIM_BRANCH, lambda m: f"backbone/{slim_branch(m)}"),
    (f"{TRUNK}InceptionV3/", "backbone/"),
    (r"/BatchNorm/", "/bn/"),
    (r"^(backbone/.*)/(?=weights$)", r"\1/conv/"),
    (f"{DECODER}AttnW_0$", "keys/kernel"),
    (f"{DECODER}AttnV_0$", "speller/attend/kernel"),
    (f"{DECODER}AttnOutputProjection/", "speller/output/"),
    (f"{DECODER}Attention_0/", "speller/query/"),
    (f"{DECODER}(?:lstm_cell|LSTMCell)/", "speller/lstm/"),
    (DECODER, "speller/input/"),
    (r"^AttentionOcr_v1/sequence_logit_fn/SQLR/softmax_w$", "speller/classifier/kernel"),
    (r"^AttentionOcr_v1/sequence_logit_fn/SQLR/softmax_b$", "speller/classifier/bias"),
  ),
  operations=(
    ("params/keys/kernel", squeeze_keras),
    ("params/speller/attend/kernel", COLUMN),
    ("params/speller/lstm/(kernel|bias)", SWAP),
  ),
)
RULES = {"slim": SLIM}
