"""Lays out what the compiler of a device says of a group's programs."""

from __future__ import annotations

import re

from jaxtune.preflight import fit, generation

WIDTH = 60  # blocks that stand for the memory of a device
BLOCKS = {"base": "█", "trained": "▓", "cache": "▞", "logits": "▒", "activations": "░"}
NAMES = {"trained": "trained weights and moments", "activations": "activations and gradients"}


def lay_out(cost: dict) -> str:
  """Returns the text of what `preflight.elsewhere.cost_on` found."""
  spread = f", on each of {cost['devices']} devices" if cost["devices"] > 1 else ""
  lines = [f"{cost['device']}, by the estimates of its compiler{spread}:"]
  if "remat" in cost:
    lines.append(f"model.remat='auto' is {cost['remat']!r} here")
  for kind, program in cost["programs"].items():
    trials, rows, tokens = program["batch"]
    many = f"{trials} trials, {cost['side_by_side']} side by side, of " if trials > 1 else ""
    rounds = ", one round" if kind in generation.KINDS else ""
    lines += ["", f"{kind}{rounds}: {many}{rows} x {tokens:,} tokens at a time"]
    lines += [f"  {line}" for line in _program(program, cost["memory_GB"])]
  if "largest" in cost:
    rows, trials = cost["largest"]["rows"], cost["largest"]["trials"]
    now = cost["programs"]["training step"]["batch"][1]
    at_most = lambda count: f"{count} or more" if count >= fit.MOST else f"up to {count}"
    lines += ["", f"a step fits with {at_most(rows)} rows at a time (now {now}), or with "
              f"{at_most(trials)} trials side by side (now {cost['side_by_side']})"]  # fmt: skip
  if shots := cost["shots"]:
    lines += ["", f"not planned: the judgement of the base with evaluate.shots={shots}, whose rows "
              "are longer by the demonstrations"]  # fmt: skip
  peaks = [program.get("peak_GB", 0.0) for program in cost["programs"].values()]
  if cost["by_share"] and max(peaks) > fit.SHARE * cost["memory_GB"]:
    lines += ["", f"jax takes {fit.SHARE:.0%} of a GPU's memory unless it is told otherwise: run "
              "with XLA_PYTHON_CLIENT_MEM_FRACTION=0.95"]  # fmt: skip
  return "\n".join(lines)


def _program(program: dict, memory: float) -> list[str]:
  """Lays out one program: a picture of its memory, and a table."""
  if "does_not_fit" in program:
    fitting = program["would_fit"]
    said = " and ".join(f"{key}={value!r}" for key, value in (fitting or {}).items())
    said = f"it would fit with {said}" if said else "no setting that was tried makes it fit"
    return [f"does not fit ({program['does_not_fit']}); {said}"]
  peak, parts = program["peak_GB"], program["parts_GB"]
  rows = [("memory", f"{peak:.2f} of {memory:.3g} GB, {memory - peak:.2f} left: " + ", ".join(
    f"{BLOCKS[part]} {NAMES.get(part, part)} {parts[part]:.2f}" for part in BLOCKS if part in parts
  ))]  # fmt: skip
  if program["floor_ms"] is not None:
    known = "unknown" if program["ms"] is None else f"{program['ms']:.2f} ms"
    rows.append(("time", f"{known}; at the peak rates {program['floor_ms']:.2f} ms its products, "
                 f"{program['traffic_ms']:.2f} ms its traffic"))  # fmt: skip
  rows.append(
    ("work", f"{program['GFLOP']:,.0f} GFLOP, {program['traffic_GB']:.2f} GB to and from memory")
  )
  rows += [("exchanged", f"{size:.2f} GB by {kind}") for kind, size in program["moved_GB"].items()]
  for name, count in program["kernels"].items():
    known = program["ms"] is not None
    time = f"; {program['kernels_ms']:.2f} ms of the time, at half of the peak" if known else ""
    rows.append(("kernels", f"{count} {name}{time}"))
  for one in program["dearest"]:
    took = f"{one['GB']:7.2f} GB" if one["ms"] is None else f"{one['ms']:7.2f} ms"
    rows.append(("dearest", f"{took}  {one['source']:36} {place(one['name'])}"))
  lines, before = [_picture(parts, memory)], ""
  for title, said in rows:
    lines.append(f"{'' if title == before else title:10} {said}")
    before = title
  return lines


def _picture(parts: dict[str, float], memory: float) -> str:
  """Draws the memory of a device, a block for each of WIDTH parts of it."""
  drawn, total = "", 0.0
  for part, block in BLOCKS.items():
    total += parts.get(part, 0.0)
    drawn += block * (round(WIDTH * total / memory) - len(drawn))
  return f"[{drawn:·<{WIDTH}}]"


def place(name: str) -> str:
  """Returns the pass and the module of an operation, from the name that jax gives it."""
  passes = {"rematted_computation": "recomputed", "transpose(": "backward"}
  first = "forward" if "/" in name else ""
  done = next((said for word, said in passes.items() if word in name), first)
  # "jit(step)/transpose(jvp(Decoder))/trunk/while/body/closed_call/layers/mlp/up_proj/dot_general"
  noise = r"\w*\(.*\)|while|body|closed_call|checkpoint|rematted_computation|cond|branch_\w+"
  parts = [part for part in name.split("/") if not re.fullmatch(noise, part)]
  return f"{done:10} {'/'.join(parts)}"
