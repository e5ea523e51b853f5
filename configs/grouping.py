"""Four methods of four sizes, three seeds each, on the bundled base: 48 trials in four programs.

  jaxtune sweep --config configs/grouping.py --workdir runs/grouping
  jaxtune sweep --config configs/grouping.py:halving --workdir runs/halving

With "halving" the worse half of a program's configurations leaves after a quarter of the updates,
and after half. What that brings is measured by experiments/grouping/run.py.
"""

from ml_collections import ConfigDict

from jaxtune.assets import INSTRUCTIONS, TINY
from jaxtune.sweeps import declare

# (methods, learning rate)
METHODS = (
  ([{"name": "lora", "rank": rank, "scale": 2.0} for rank in (1, 2, 4, 16)], 5e-3),
  ([{"name": "loha", "rank": rank, "scale": 2.0} for rank in (1, 2, 4, 16)], 3e-2),
  ([{"name": "prefix", "length": length} for length in (2, 4, 8, 16)], 0.3),
  ([{"name": "prompt", "length": length} for length in (4, 8, 16, 32)], 3e-2),
)
SEEDS = [0, 1, 2]


def get_config(early_exit: str = "") -> ConfigDict:
  config = ConfigDict()
  config.seed = 0
  config.model = ConfigDict({"path": str(TINY)})
  config.data = ConfigDict(
    {name: str(INSTRUCTIONS / f"{name}.jsonl") for name in ("train", "validation", "test")}
    | {"max_length": 128}
  )
  config.train = ConfigDict({"steps": 100, "batch_size": 8, "eval_every": 25})
  config.evaluate = ConfigDict({"batch_size": 16})
  config.search = ConfigDict({"early_exit": early_exit or None})
  config.sweep = declare.chain(
    *(
      {"method": methods, "optim.learning_rate": [rate], "seed": SEEDS} for methods, rate in METHODS
    )
  )
  return config
