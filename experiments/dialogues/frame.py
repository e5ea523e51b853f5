"""Scores a constant sentence beside a run's summaries: what ROUGE gives to the frame alone.

python experiments/dialogues/frame.py runs/dialogues/trials/TRIAL
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from jaxtune import metrics

FRAME = "#Person1# and #Person2# are talking to #Person1#."
NAMES = ("rouge1", "rouge2", "rougeL")


def main(folder: str) -> None:
  rows = [json.loads(line) for line in Path(folder, "predictions.jsonl").read_text().splitlines()]
  references = [row["references"] for row in rows]
  own = [row["prediction"] for row in rows]
  for name, said in (("the run's summaries", own), (repr(FRAME), [FRAME] * len(rows))):
    scores = metrics.score(said, references, NAMES)
    print(f"{name}: " + ", ".join(f"{key} {value:.2f}" for key, value in scores.items()))


if __name__ == "__main__":
  main(*sys.argv[1:])
