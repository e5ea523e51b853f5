"""The heat maps of a sweep's page: {title, note, rows, columns, values, ...}.

Maps of one "group" are shown in one place, where "choices", {name: value}, say which is shown.
"shades" are what the cells' colours show, by default the values, "range" the ends of their scale,
by default the least and the largest, and "notes" what the pointer tells beside a value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxtune.metrics.kinds.label import Confusion
from jaxtune.sweeps.analysed import Analysis, Measured, cut_losses, mean

MOST = 24  # configurations
MEASURES: dict[str, Callable[[dict], Sequence[float | None]]] = {
  "relative change |dW| / |W|": lambda x: x["relative"],
  "effective rank": lambda x: x["effective_rank"],
  "spectral norm": lambda x: x["spectral"],
  "amplification factor": lambda x: x["amplification"]["factor"],
}
WEIGHTS, CUTS = "Change of the weights", "Loss with changes cut to a rank"
SHARED, PAIRS = "Subspaces that configurations share", "Subspaces of two configurations"
ATTENTION, STATES = "Attention to virtual tokens", "Change of the states"


def of_analysis(measured: Sequence[Measured], analysis: Analysis) -> list[dict]:
  """Lists the maps of what was analysed, of the first `MOST` configurations."""
  shown, made = measured[:MOST], (_weights, _cuts, _shared, _attention, _states)
  maps = [one for make in made for one in make(shown, analysis)]
  if len(shown) < len(measured):
    left_out = f" The {MOST} best of {len(measured)} configurations are shown."
    maps = [one | {"note": one["note"] + left_out} for one in maps]
  return maps


def confusion(best: Mapping[str, Any]) -> list[dict]:
  """Lists the confusion matrix of the best trial, if it has one."""
  if not best.get("confusion"):
    return []
  labels, counts = [str(x) for x in best["confusion"]["labels"]], best["confusion"]["counts"]
  return [
    {
      "title": f"Confusion matrix of {best['trial']}",
      "note": "True classes down, predicted classes across. Numbers are examples, shades their "
      "share of the true class.",
      "rows": labels,
      "columns": labels,
      "values": counts,
      "shades": Confusion(tuple(labels), np.asarray(counts)).shares_CC.tolist(),
      "range": [0, 1],
      "unit": "examples",
    }
  ]


def _weights(measured: Sequence[Measured], _: Analysis) -> list[dict]:
  """Maps each measure of the weights' change by layer and module, as means over seeds."""
  found = []
  note = "Layers down, modules across; means over seeds. W is the base's weight, dW its change."
  for one in measured:
    paths = [path for path in one.entries[0]["weights"] if "layers" in path.split("/")]
    names = modules(paths)
    for measure, take in MEASURES.items() if paths else ():
      columns = [
        [
          mean(layer)
          for layer in zip(*(take(e["weights"][path]) for e in one.entries), strict=True)
        ]
        for path in paths
        if all(path in e["weights"] for e in one.entries)
      ]
      layers = max(map(len, columns))
      values = [[c[i] if i < len(c) else None for c in columns] for i in range(layers)]
      choices = {"configuration": one.label, "measure": measure}
      found.append(_map(WEIGHTS, note, range(layers), names, values, choices))
  return found


def modules(paths: Sequence[str]) -> list[str]:
  """Names modules as shortly as they can be told apart: "q_proj" or "encoder attn/q_proj"."""
  parts = [path.split("/") for path in paths]
  long = ["/".join(part[2:-1]) for part in parts]
  if len({part[0] for part in parts}) > 1:
    return [f"{part[0]} {name}" for part, name in zip(parts, long, strict=True)]
  short = [name.rpartition("/")[2] for name in long]
  return short if len(set(short)) == len(short) else long


def _cuts(measured: Sequence[Measured], analysis: Analysis) -> list[dict]:
  losses = {one.label: cut for one in measured if (cut := cut_losses(one))}
  if not losses:
    return []
  ranks = sorted({rank for cut in losses.values() for rank in cut})
  note = (
    f"Mean loss over {analysis['examples']} examples of {analysis['split']} or all there are, with "
    "only the largest singular values of the change of every matrix, as many as the column says. "
    "At 0 the matrices are the base's; biases, scales and new heads are always as trained."
  )
  values = [[cut.get(rank) for rank in ranks] for cut in losses.values()]
  return [_map(CUTS, note, losses, ranks, values, unit="nats")]


def _shared(measured: Sequence[Measured], analysis: Analysis) -> list[dict]:
  """Maps the similarity of subspaces by configurations, and of two of them by their dimensions."""
  label_of = {name: one.label for one in measured for name in one.trials}
  pairs = {}
  for pair in analysis["similarity"]:
    a, b = (label_of.get(pair[side][0]) for side in ("a", "b"))
    if a is not None and b is not None:
      pairs |= {(b, a): _turned(pair), (a, b): pair}
  labels = [one.label for one in measured if any(one.label in both for both in pairs)]
  both = [(a, b) for a in labels for b in labels if (a, b) in pairs]
  return [
    one
    for side in ("outputs", "inputs")
    for one in (*_by_configurations(labels, pairs, side), *_by_dimensions(both, pairs, side))
  ]


def _by_configurations(labels: Sequence[str], pairs: Mapping, side: str) -> list[dict]:
  note = (
    "phi of Hu et al. 2021, section 7.2: 1 if the smaller subspace lies in the larger one, 0 if "
    "they are orthogonal; mean over layers, modules and pairs of trials with different seeds. Two "
    "trials of one seed start from the same directions of inputs. Random subspaces have the phi "
    "that a cell tells beside its own."
  )
  found, cells = [], [[pairs.get((a, b)) for b in labels] for a in labels]
  numbers = range(1, len(labels) + 1)
  names = [f"{n}  {label}" for n, label in zip(numbers, labels, strict=True)]
  for i, k in enumerate(next(iter(pairs.values()))["dimensions"] if pairs else ()):
    values = [[pair and pair[side]["similarity"][i][i] for pair in row] for row in cells]
    if any(x is not None for row in values for x in row):
      choices = {"directions of": side, "dimensions": str(k)}
      more = {"notes": [[_by_chance(pair, side, i, i) for pair in row] for row in cells]}
      found.append(_map(SHARED, note, names, numbers, values, choices, range=[0, 1], **more))
  return found


def _by_dimensions(both: Sequence[tuple[str, str]], pairs: Mapping, side: str) -> list[dict]:
  note = "phi as above, of as many of the largest directions as rows and columns say."
  found = []
  for a, b in both:
    pair = pairs[a, b]
    known = [[x is not None for x in row] for row in pair[side]["similarity"]]
    down, across = (sum(map(any, lines)) for lines in (known, zip(*known, strict=True)))
    dims = pair["dimensions"]
    values = [row[:across] for row in pair[side]["similarity"][:down]]
    notes = [[_by_chance(pair, side, i, j) for j in range(across)] for i in range(down)]
    choices = {"rows": a, "columns": b, "directions of": side}
    more = dict(notes=notes, range=[0, 1])
    found.append(_map(PAIRS, note, dims[:down], dims[:across], values, choices, **more))
  return found


def _turned(pair: Mapping[str, Any]) -> dict[str, Any]:
  """Returns a comparison with its configurations in the other order."""
  turned = lambda side: {name: [*zip(*rows, strict=True)] for name, rows in pair[side].items()}
  return {**pair, "inputs": turned("inputs"), "outputs": turned("outputs")}


def _by_chance(pair: Mapping[str, Any] | None, side: str, i: int, j: int) -> str:
  if pair is None:
    return ""
  same = "" if pair["seeds"] == "different" else "; trials of the same seed"
  return f"random subspaces: {pair[side]['random'][i][j]:.3g}{same}"


def _attention(measured: Sequence[Measured], analysis: Analysis) -> list[dict]:
  """Maps the attention to virtual tokens by layer and head, as means over seeds."""
  found = []
  note = (
    "Layers down, heads across: the share of a real token's attention that virtual tokens get. "
    f"Mean over the real tokens of the {analysis['split']} examples and over seeds."
  )
  for one in measured:
    for name in one.entries[0]["attention"]:
      sites = [e["attention"][name] for e in one.entries]
      values = [
        [mean(seeds) for seeds in zip(*heads, strict=True)]
        for heads in zip(*(x["mass"] for x in sites), strict=True)
      ]
      uniform = [mean(seeds) for seeds in zip(*(x["uniform"] for x in sites), strict=True)]
      notes = [
        [f"uniform attention: {u:.3g}"] * len(row) for u, row in zip(uniform, values, strict=True)
      ]
      choices = {"configuration": one.label, "attention": name}
      more = dict(notes=notes, range=[0, 1])
      found.append(
        _map(ATTENTION, note, range(len(values)), range(len(values[0])), values, choices, **more)
      )
  return found


def _states(measured: Sequence[Measured], analysis: Analysis) -> list[dict]:
  found = []
  note = (
    "|h' - h| / |h| of each layer's output h, with the method and without it, over the real tokens "
    f"of the {analysis['split']} examples; mean over seeds."
  )
  for trunk in dict.fromkeys(t for one in measured for t in one.entries[0]["states"]):
    rows = {
      one.label: [
        mean(seeds) for seeds in zip(*(e["states"][trunk] for e in one.entries), strict=True)
      ]
      for one in measured
      if all(trunk in e["states"] for e in one.entries)
    }
    layers = max(map(len, rows.values()))
    values = [[*row, *[None] * (layers - len(row))] for row in rows.values()]
    found.append(_map(STATES, note, rows, range(layers), values, {"part": trunk}))
  return found


def _map(
  group: str, note: str, rows: Any, columns: Any, values: Sequence, choices: dict | None = None,
  **more: Any,
) -> dict[str, Any]:  # fmt: skip
  name = ", ".join([group, *(choices or {}).values()])
  texts = {"rows": [*map(str, rows)], "columns": [*map(str, columns)]}
  return {"title": name, "group": group, "note": note, **texts, "values": values,
          "choices": choices or {}, **more}  # fmt: skip
