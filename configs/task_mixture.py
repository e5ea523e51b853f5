"""Fifteen tasks of Super-NaturalInstructions: mixtures of all, and a run for each task alone.

  jaxtune sweep --config configs/task_mixture.py:PART --workdir runs/task_mixture/PART

PART is "mixed" (three mixtures) or "alone" (each task, with as many examples as the equal mixture
draws of it); "mixed_rates" and "alone_rates" try learning rates on validation examples. Cost and
scores: experiments/task_mixture/README.md.
"""

from ml_collections import ConfigDict

from jaxtune.assets import TINY

FOLDER = "../shared/data/superni"
TASKS = (
  "task002_quoref_answer_generation",
  "task073_commonsenseqa_answer_generation",
  "task1290_xsum_summarization",
  "task1510_evalution_relation_extraction",
  "task1572_samsum_summary",
  "task1590_diplomacy_text_generation",
  "task1687_sentiment140_classification",
  "task1729_personachat_generate_next",
  "task181_outcome_extraction",
  "task363_sst2_polarity_classification",
  "task511_reddit_tifu_long_text_summarization",
  "task591_sciq_answer_generation",
  "task639_multi_woz_user_utterance_generation",
  "task748_glucose_reverse_cause_event_detection",
  "task875_emotion_classification",
)
# Short texts train faster on a CPU: the end of long instructions and the middle of long inputs are
# left out.
TEMPLATE = (
  "{{ instruction[:200] }}\n{% if input | length > 140 %}{{ input[:80] }} ... {{ input[-60:] }}"
  "{% else %}{{ input }}{% endif %}\n"
)
STEPS = {"mixed": 60, "alone": 4}  # 60 / 15 = 4 for each task
RATES = {"mixed": 1e-2, "alone": 1e-2}  # by `PART_rates`
CANDIDATES = [3e-3, 1e-2, 3e-2]


def get_config(part: str) -> ConfigDict:
  kind, tries_rates = part.removesuffix("_rates"), part.endswith("_rates")
  config = ConfigDict()
  config.seed = 0
  config.model = ConfigDict({"path": str(TINY), "remat": True})
  config.data = ConfigDict(
    {
      "train": f"{FOLDER}/train.jsonl.gz",
      "test": None if tries_rates else f"{FOLDER}/test.jsonl.gz",
      "validation": 6,  # of each task, as the limits are
      "limit": 500,
      "eval_limit": 12,
      "template": TEMPLATE,
      "answer": "outputs",
      "max_length": 144,
      "too_long": "truncate",  # the end of a long answer
      "no_target": "skip",  # three posts have an empty summary
    }
  )
  config.method = ConfigDict({"name": "lora", "rank": 16, "scale": 2.0})
  config.optim = ConfigDict({"schedule": "linear", "warmup": 1, "learning_rate": RATES[kind]})
  steps = STEPS[kind]
  config.train = ConfigDict(
    {"batch_size": 8, "steps": steps, "eval_every": steps, "log_every": 4, "keep": "last"}
  )
  text = {"generate": True, "max_new_tokens": 24, "metrics": ("exact_match", "rougeL")}
  config.evaluate = ConfigDict({"batch_size": 12, **({} if tries_rates else text)})
  if kind == "mixed":
    config.data.tasks = {task: {"only": {"task": task}} for task in TASKS}
    grids = [{"data.mixture": ["equal"]}]
    if not tries_rates:
      grids = [
        {"data.mixture": ["equal", "proportional"]},
        {"data.mixture": ["proportional"], "data.temperature": [2.0]},
      ]
  else:
    grids = [{"data.only": [{"task": task} for task in TASKS]}]
  tried = {"optim.learning_rate": CANDIDATES} if tries_rates else {"seed": [0, 1, 2]}
  config.sweep = tuple(grid | tried for grid in grids)
  return config
