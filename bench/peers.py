"""The same network with the same weights in each runtime; what `python -m bench` times.

A side is built from a `tests.parity.Case` and normalised images [b h w c], and answers with a
function of nothing that computes once and returns the logits, or the loss of one more update, on
the device: `fetched` waits for them. All run on the GPU where JAX has one.
"""

from collections.abc import Callable
import dataclasses
from functools import partial
import time
from typing import Any
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

from convert.commands import export
from tests import parity
import zoo

Run = Callable[[], Any]
CASES = [  # what has no original of torch's
  parity.Case(
    "yolov3_tiny", "bench.darknet:Net", {}, "darknet", positional=("yolov3_tiny",),
    edit=lambda state: {k: v for k, v in state.items() if not k.endswith("batches_tracked")},
  )
]  # fmt: skip
RATE, MOMENTUM = 1e-3, 0.9


@dataclasses.dataclass
class Twin:
  """A model of ours, its variables, and the original with the same arrays."""

  case: parity.Case
  images: np.ndarray
  half: bool = False  # computes in bfloat16, with float32 parameters and norms
  traffic: float = float("nan")  # bytes that ours reads and writes, by XLA's count

  def __post_init__(self):
    import torch

    self.original = parity.build(self.case)
    for module in self.original.modules():
      if isinstance(module, torch.nn.Dropout):
        module.p = 0.0  # no two sides would drop the same
    parity.randomize(self.original, self.pixels(2))
    torch.set_num_threads(THREADS or torch.get_num_threads())
    torch.backends.cudnn.benchmark = True
    state = {name: value.numpy().copy() for name, value in self.original.state_dict().items()}
    dtype = jnp.bfloat16 if self.half else jnp.float32
    fields = {**self.case.fields, "plain": False, "dtype": dtype}
    self.model = zoo.create(self.case.variant, **fields)
    if getattr(self.model, "dropout", 0.0):
      self.model = self.model.clone(dropout=0.0)
    self.variables = jax.tree.map(
      jnp.asarray, parity.variables_of(self.case, state, self.model, size=self.images.shape[1])
    )

  def pixels(self, count: int | None = None, device: str = "cpu"):
    import torch

    images = torch.from_numpy(self.images[:count]).to(device).permute(0, 3, 1, 2)
    return images.contiguous(memory_format=torch.channels_last)

  def cast(self):
    """torch's context that computes as ours does."""
    import torch

    return torch.autocast(device(), torch.bfloat16, enabled=self.half)

  @property
  def labels(self) -> np.ndarray:
    return np.arange(len(self.images)) % 10


THREADS = 0  # of torch; 0 is as many as it takes by itself


def device() -> str:
  """torch's name of what JAX runs on."""
  return "cuda" if jax.default_backend() == "gpu" else "cpu"


def fetched(value) -> np.ndarray:
  """What a side returned, when it is computed."""
  return value.float().cpu().numpy() if hasattr(value, "cpu") else np.asarray(value, np.float32)


# Inference.


def flaxzoo(twin: Twin) -> Run:
  batch = len(twin.images) if device() == "cpu" else None
  size = twin.images.shape[1:3]
  run = _jitted(twin, *zoo.fold(twin.model, twin.variables, size=size, cpu_batch=batch))
  twin.traffic = run.func.lower(*run.args).compile().cost_analysis()["bytes accessed"]
  return run


def flax(twin: Twin) -> Run:
  """What plain Flax runs: XLA's own convolutions and windows, the norms as they are."""
  return _jitted(twin, _plain(twin.model), twin.variables)


def _plain(model):
  return model.clone(numerics=dataclasses.replace(model.numerics, plain=True))


def answer(ends, arrays=jnp):
  """The logits, or all raw maps of a detector behind each other, [b n], as arrays of `arrays`."""
  if "logits" in ends:
    return ends["logits"]
  raw = [end.reshape(len(end), -1) for name, end in ends.items() if name.startswith("raw")]
  return arrays.concatenate(raw, 1)


def _jitted(twin: Twin, model, variables) -> partial:
  run = jax.jit(lambda variables, image: answer(model.apply(variables, image, train=False)))
  variables = jax.tree.map(lambda x: jnp.asarray(x, model.numerics.dtype), variables)
  return partial(run, variables, jax.device_put(twin.images))


def session(graph: bytes):
  """Of onnxruntime, whose threads wait busily within a run, but not after it: others run then."""
  import onnxruntime as ort

  options = ort.SessionOptions()
  options.add_session_config_entry("session.force_spinning_stop", "1")
  return ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def onnxruntime(twin: Twin) -> Run:
  """The graph of `train.predict --runtime=onnxruntime`."""
  size = twin.images.shape[1]
  record = zoo.Record(twin.case.variant, preprocess=zoo.Preprocess(size=size))
  raw = export.onnx_model(twin.model, twin.variables, record, planes=True).SerializeToString()
  running = session(raw)
  names = [output.name for output in running.get_outputs()]
  feed = {"image": np.ascontiguousarray(twin.images.transpose(0, 3, 1, 2))}
  # By NumPy: to hand arrays to JAX and back takes a seventh of YOLO v3 tiny's time.
  return lambda: answer(dict(zip(names, running.run(names, feed))), np)


def torch_onnxruntime(twin: Twin) -> Run:
  """The graph that torch writes of the original."""
  import io

  import torch as t

  file, image = io.BytesIO(), twin.pixels().contiguous()
  with warnings.catch_warnings(action="ignore"):
    t.onnx.export(
      twin.original.eval(), image, file, dynamo=False, input_names=["image"], opset_version=17
    )
  running = session(file.getvalue())
  feed = {"image": image.numpy()}
  return lambda: running.run(None, feed)[0]


def torch(twin: Twin) -> Run:
  return _torch(twin)


def torch_compile(twin: Twin) -> Run:
  return _torch(twin, _compiled(frozen=True))


def _compiled(frozen: bool):
  import torch as t
  import torch._inductor.config as inductor

  inductor.freezing = frozen
  return t.compile


def _torch(twin: Twin, wrap=lambda model: model) -> Run:
  import torch as t

  model = wrap(twin.original.eval().to(device(), memory_format=t.channels_last))
  image = twin.pixels(device=device())

  def run():
    with t.no_grad(), twin.cast():
      return model(image)

  return run


OWN = ("flaxzoo", "our onnxruntime")  # both are ways of ours
INFERENCE = {
  "flaxzoo": flaxzoo, "our onnxruntime": onnxruntime, "torch": torch,
  "torch.compile": torch_compile, "torch's onnxruntime": torch_onnxruntime, "flax": flax,
}  # fmt: skip


# Training: cross-entropy, SGD with momentum, float32.


def flaxzoo_update(twin: Twin) -> Run:
  run, twin.traffic = _update(twin.model, twin)
  return run


def flax_update(twin: Twin) -> Run:
  return _update(_plain(twin.model), twin)[0]


def _train(model, variables, image):
  return model.apply(
    variables, image, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
  )


def _update(model, twin: Twin) -> tuple[Run, float]:
  """One more update, and the bytes that it moves."""
  tx = optax.sgd(RATE, MOMENTUM)
  # Copies, for updates give their inputs' memory to their outputs.
  variables = jax.tree.map(jnp.copy, dict(twin.variables))
  params, stats = variables.pop("params"), variables
  image, labels = jax.device_put(twin.images), jax.device_put(twin.labels)

  @partial(jax.jit, donate_argnums=(0, 1, 2))
  def update(params, stats, state):
    def loss(params):
      ends, moved = _train(model, {"params": params, **stats}, image)
      each = optax.softmax_cross_entropy_with_integer_labels(ends["logits"], labels)
      return each.mean(), moved

    (value, moved), grads = jax.value_and_grad(loss, has_aux=True)(params)
    changes, state = tx.update(grads, state)
    return optax.apply_updates(params, changes), moved, state, value

  kept = [params, stats, tx.init(params)]
  update = update.lower(*kept).compile()

  def run():
    *kept[:], value = update(*kept)
    return value

  return run, update.cost_analysis()["bytes accessed"]


def torch_update(twin: Twin) -> Run:
  return _torch_update(twin)


def torch_compile_update(twin: Twin) -> Run:
  return _torch_update(twin, _compiled(frozen=False))


def _torch_update(twin: Twin, wrap=lambda model: model) -> Run:
  import copy

  import torch as t

  model = copy.deepcopy(twin.original).train().to(device(), memory_format=t.channels_last)
  optimizer = t.optim.SGD(model.parameters(), RATE, MOMENTUM)
  image, labels = twin.pixels(device=device()), t.from_numpy(twin.labels).to(device())
  forward = wrap(model)

  def run():
    optimizer.zero_grad(set_to_none=True)
    with twin.cast():
      loss = t.nn.functional.cross_entropy(forward(image), labels)
    loss.backward()
    optimizer.step()
    return loss.detach()

  return run


TRAIN = {
  "flaxzoo": flaxzoo_update, "torch": torch_update, "torch.compile": torch_compile_update,
  "flax": flax_update,
}  # fmt: skip


# Compilation: seconds of tracing, lowering and compiling, of the forward pass and of an update.


def compile_seconds(name: str, plain: bool, size: int, batch: int) -> tuple[float, float]:
  model = zoo.create(name, plain=plain)
  specs = zoo.shapes(model, size=size)
  image = jax.ShapeDtypeStruct((batch, size, size, 3), np.float32)

  def forward(variables, image):
    return model.apply(variables, image, train=False)["logits"]

  def gradients(variables, image):
    def loss(params):
      ends, moved = _train(model, {**variables, "params": params}, image)
      return (ends["logits"] ** 2).mean(), moved

    return jax.grad(loss, has_aux=True)(variables["params"])

  taken = []
  for function in (forward, gradients):
    start = time.perf_counter()
    jax.jit(function).lower(specs, image).compile()
    taken.append(time.perf_counter() - start)
  return taken[0], taken[1]
