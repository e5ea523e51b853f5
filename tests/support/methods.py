"""Every method once: the rows of the README's table, and further options of them.

`tests/matrix.py` and `tests/certificates.py` go through all of them, and tests take theirs by name.
"""

from __future__ import annotations

from typing import NamedTuple


class Trial(NamedTuple):
  """A method as a config's section.

  Attributes:
    section: the `method` section of a config.
    change: how a second trial that shares its program differs.
    quantize: the type of the frozen base; None for fp32.
  """

  section: dict
  change: dict = {}
  quantize: str | None = None


LINEAR = (".*_proj",)
METHODS = {
  "LoRA": Trial(dict(name="lora", rank=3), dict(rank=2, alpha=4.0)),
  "LoRA+": Trial(dict(name="lora", rank=2, b_rate=4.0), dict(b_rate=2.0)),
  "LoRA-FA": Trial(dict(name="lora", rank=2, train_a=False), dict(rank=1)),
  "rsLoRA, all linear": Trial(dict(name="lora", rank=3, rslora=True, targets=LINEAR), dict(rank=2)),
  "LoRA of embeddings": Trial(dict(name="lora", rank=2, targets=("embed", "q_proj")), dict(rank=1)),
  "DoRA": Trial(dict(name="lora", rank=3, dora=True), dict(rank=2)),
  "PiSSA": Trial(dict(name="lora", rank=3, initialise="pissa"), dict(rank=2)),
  "OLoRA": Trial(dict(name="lora", rank=3, initialise="olora"), dict(rank=2)),
  "VeRA": Trial(dict(name="vera", rank=6), dict(rank=4)),
  "AdaLoRA": Trial(dict(name="adalora")),
  "LoHa": Trial(dict(name="loha", rank=3), dict(rank=2)),
  "LoKr": Trial(dict(name="lokr", rank=2)),
  "adapter, Pfeiffer": Trial(dict(name="adapter", width=5), dict(width=3)),
  "adapter, Houlsby": Trial(dict(name="adapter", width=4, placement="houlsby"), dict(width=3)),
  "adapter, parallel": Trial(dict(name="adapter", width=4, placement="parallel"), dict(scale=2.0)),
  "AdapterPlus": Trial(dict(name="adapter", width=4, placement="plus"), dict(width=3)),
  "Compacter": Trial(dict(name="compacter", width=4, n=2)),
  "prefix": Trial(dict(name="prefix", length=3), dict(length=2)),
  "prefix, MLP": Trial(dict(name="prefix", length=3, projection=6), dict(length=2)),
  "prompt": Trial(dict(name="prompt", length=3), dict(length=2)),
  "P-tuning": Trial(dict(name="p_tuning", length=3), dict(length=2)),
  "IA3": Trial(dict(name="ia3")),
  "BitFit": Trial(dict(name="bitfit")),
  "norms": Trial(dict(name="norms")),
  "last layers": Trial(dict(name="last_layers", layers=1)),
  "LoReFT": Trial(dict(name="reft", rank=2)),
  "MAM": Trial(dict(name="mam")),
  "UniPELT": Trial(dict(name="unipelt")),
  "full": Trial(dict(name="full")),
  "int8 base + LoRA": Trial(dict(name="lora", rank=2), dict(rank=1), "int8"),
  "NF4 base + LoRA": Trial(dict(name="lora", rank=2), dict(rank=1), "nf4"),
}
# Options that a file format treats in a way of their own.
OPTIONS = {
  "LoRA, all linear": dict(name="lora", rank=4, targets=LINEAR),
  "LoRA, ranks by pattern": dict(
    name="lora", rank=4, ranks={"down_proj": 2}, targets=("q_proj", "down_proj")
  ),
  "DoRA, all linear": dict(name="lora", rank=4, dora=True, targets=LINEAR),
  "AdaLoRA, pruned": dict(name="adalora", init_rank=4, target_rank=2),
  "VeRA, of outputs": dict(name="vera", rank=16, targets=("o_proj", "down_proj")),
  "LoKr, both factors": dict(name="lokr", rank=2, factor=4, decompose_both=True),
  "adapter, of an odd width": dict(name="adapter", width=19, placement="parallel"),
  "adapter with LayerNorms": dict(name="adapter", width=12, ln_before=True, ln_after=True),
  "adapter, widths by layer": dict(name="adapter", width=(12, 4, 8)),
  "Compacter++, own rules": dict(
    name="compacter", width=12, n=4, placement="pfeiffer", shared=False
  ),
  "prefix at 0": dict(name="prefix", length=7, shift=False),
  "MAM, prefix as arrays": dict(
    name="mam", prefix=dict(length=5, projection=None), adapter=dict(width=12)
  ),
  "last layers and norm": dict(name="last_layers", layers=1, norm=True),
}
SECTIONS = {name: trial.section for name, trial in METHODS.items()} | OPTIONS
# What else each option may be that `Method.groupable` says is an array.
OTHER = {
  "rank": 1, "ranks": {"q_proj": 3}, "init_rank": 9, "target_rank": 3, "width": 4, "length": 2,
  "lengths": (1, 0, 2), "reduction_factor": 4.0, "first": 2, "alpha": 3.0, "dropout": 0.1,
  "alphas": {"q_proj": 3.0}, "scale": 0.5, "rslora": True, "b_rate": 2.0, "orth_weight": 0.1,
  "d_initial": 0.3, "init_scale": 0.1, "initialise": "vocabulary", "text": "a b",
  "token_dropout": 0.1, "neftune": 1.0,
}  # fmt: skip
NEEDED = {"text": {"initialise": "text"}}  # by another option
