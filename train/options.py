"""Turns frozen dataclasses into absl flags and back, so that the loop never reads FLAGS.

Each field of a dataclass made with `option` is a flag; its help text is the documentation.
"""

from collections.abc import Callable
import dataclasses
import sys
from typing import Any, TypeVar

from absl import app, flags, logging

T = TypeVar("T")
DEFINE = {
  int: flags.DEFINE_integer,
  float: flags.DEFINE_float,
  str: flags.DEFINE_string,
  bool: flags.DEFINE_boolean,
  tuple[str, ...]: flags.DEFINE_list,
}
# Without this, absl would list the flags of a script under this module and not in its --help.
flags.disclaim_key_flags()
DEBUG = flags.DEFINE_boolean("debug", False, "Show an error with its traceback.")


def option(default, help: str, *, choices: tuple[str, ...] = (), free: bool = False, **limits):
  """A field that becomes a flag.

  Args:
    help: one sentence for --help, with units and range.
    choices: the only values that a str may take.
    free: the flag may change when a run is resumed, because the result does not depend on it.
    **limits: `lower_bound`, `upper_bound` of a number.
  """
  metadata = {"help": help, "choices": choices, "free": free, "limits": limits}
  return dataclasses.field(default=default, metadata=metadata)


def define(cls: type[T], values: flags.FlagValues = flags.FLAGS) -> Callable[[], T]:
  """Defines one flag for each field of `cls`; returns a function that reads them into a `cls`."""
  holders = {}
  for f in dataclasses.fields(cls):
    help, choices, limits = f.metadata["help"], f.metadata["choices"], f.metadata["limits"]
    if choices:
      holders[f.name] = flags.DEFINE_enum(f.name, f.default, choices, help, values)
    else:
      default = list(f.default) if isinstance(f.default, tuple) else f.default
      holders[f.name] = DEFINE[f.type](f.name, default, help, flag_values=values, **limits)
  return lambda: cls(**{name: _plain(holder.value) for name, holder in holders.items()})


def _plain(value):
  return tuple(value) if isinstance(value, list) else value


def as_dict(*configs: Any) -> dict[str, Any]:
  """The flags of several dataclasses in one {name: value}, as run.json keeps them."""
  return {f.name: getattr(c, f.name) for c in configs for f in dataclasses.fields(c)}


def usual(*configs: Any) -> dict[str, Any]:
  """The same with the values that flags have if they are not given."""
  return {f.name: f.default for c in configs for f in dataclasses.fields(c)}


def free(*configs: Any) -> set[str]:
  """Names of the flags that may change when a run is resumed."""
  return {f.name for c in configs for f in dataclasses.fields(c) if f.metadata["free"]}


def run(
  main: Callable[..., int | None], *configs: type, arguments: bool = False,
  stopped: str = "stopped; the same command goes on from the last checkpoint",
) -> None:  # fmt: skip
  """Parses the flags and calls `main`; what is wrong with the user's input ends in a sentence.

  Args:
    main: gets the command line without flags and one of each of `configs`, returns the exit
      status; None is 0.
    configs: dataclasses whose fields become flags, now: importing a script defines none.
    arguments: it may hold words that are no flags.
    stopped: what to say when the user interrupts.
  """

  readers = [define(config) for config in configs]

  def guarded(argv):
    if not flags.FLAGS["verbosity"].present:
      logging.set_verbosity(logging.WARNING)
    try:
      if argv[1:] and not arguments:
        raise ValueError(f"{' '.join(argv[1:])}: every option is written --name=value")
      return main(argv, *(read() for read in readers))
    except (ValueError, OSError, FloatingPointError) as error:
      if DEBUG.value:
        raise
      sys.exit(f"error: {error}")
    except KeyboardInterrupt:
      sys.exit(f"\n{stopped}")

  app.run(guarded)
