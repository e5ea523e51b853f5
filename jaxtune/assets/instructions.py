"""Writes the bundled instruction data: five small tasks in a made-up world.

describe (restaurant from attributes), table (the reverse), rate (stars of a review), title (one
line for a review) and answer (a question on a passage). Training rows hold one answer; validation
and test rows a list of every accepted one, the first of which is what a training row would hold.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import NamedTuple

from jaxtune.assets import INSTRUCTIONS, world

SIZES = {"train": 2000, "validation": 200, "test": 200}
WORDINGS = {
  "describe": (
    "Describe the restaurant in words.",
    "Write a short text about this restaurant.",
    "Turn these facts into sentences.",
    "Introduce the restaurant to a guest.",
  ),
  "table": (
    "List the facts about the restaurant.",
    "Which facts does the text give?",
    "Turn the text into a list of attributes.",
    "Extract the attributes of the restaurant.",
  ),
  "rate": (
    "How many stars does this review give, from 1 to 5?",
    "Rate the review from 1 to 5.",
    "Guess the number of stars, 1 to 5.",
    "Give the star rating of this review, 1 to 5.",
  ),
  "title": (
    "Write a title for this review.",
    "Summarize the review in one line.",
    "Give the review a short headline.",
    "Sum up the review in a few words.",
  ),
  "answer": (
    "Answer the question about the text.",
    "Read the text and answer the question.",
    "Use the text to answer.",
    "Find the answer in the text.",
  ),
}
WHERE = {
  "hillside": "on the",
  "canal": "by the",
  "riverside": "by the",
  "north bank": "on the",
  "docks": "at the",
  "castle hill": "on the",
  "harbour": "at the",
  "market square": "on the",
}
COST = {"cheap": "cheap", "moderate": "moderately priced", "expensive": "expensive"}
TONES = {1: "Terrible", 2: "Disappointing", 3: "Average", 4: "Good", 5: "Perfect"}
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
JOBS = (
  "baker",
  "sailor",
  "farmer",
  "tailor",
  "miller",
  "doctor",
  "teacher",
  "painter",
  "smith",
  "carpenter",
  "gardener",
  "singer",
)

# Plural names would be wrong after "this".
SINGULAR = tuple(p for p in world.PRODUCTS if not p.endswith("s") or p.endswith("ss"))


class Row(NamedTuple):
  """An example of a task."""

  task: str
  input: str
  outputs: tuple[str, ...]  # accepted answers


def restaurant(rng: random.Random, split: str) -> dict[str, str]:
  """Draws a restaurant of the split: name, food and two to four other facts."""
  name = ""
  while not name or world.split_of(name) != split:
    name = f"The {rng.choice(world.NAME_FIRST)} {rng.choice(world.NAME_SECOND)}"
  other = {
    "price": rng.choice(world.PRICES),
    "area": rng.choice(world.AREAS),
    "dish": rng.choice(world.DISHES),
    "guests": rng.choice(world.GUESTS),
  }
  chosen = rng.sample(sorted(other), rng.randint(2, 4))
  drawn = {key: value for key, value in other.items() if key in chosen}
  return {"name": name, "food": rng.choice(world.CUISINES)} | drawn


def with_article(words: str) -> str:
  return f"an {words}" if words[0] in "aeiouAEIOU" else f"a {words}"


def table(facts: dict[str, str]) -> str:
  return "; ".join(f"{key}: {value}" for key, value in facts.items())


def descriptions(facts: dict[str, str]) -> tuple[str, ...]:
  """Returns a description of the facts in each of the wordings."""
  name, cost = facts["name"], COST.get(facts.get("price", ""), "")
  kind = f"{cost} {facts['food']}".strip()
  area = facts.get("area")
  place = f"{WHERE.get(area, 'in the')} {area}" if area else ""
  at, here = (f" {place}", place[0].upper() + place[1:]) if area else ("", "")
  first = (
    f"{name} is {with_article(kind)} restaurant{at}.",
    f"{name} serves {kind} food{at}.",
    f"{here}, {name} offers {kind} cooking." if area else f"{name} offers {kind} cooking.",
    f"If you like {facts['food']} food, visit {name}{at}." + (f" It is {cost}." if cost else ""),
  )
  dish, guests = facts.get("dish"), facts.get("guests")
  then = (
    (f"It is known for its {dish}.", f"It is good for {guests}."),
    (f"Try the {dish}.", f"It suits {guests}."),
    (f"Its best dish is {dish}.", f"It welcomes {guests}."),
    (f"Order the {dish}.", f"It is popular with {guests}."),
  )
  return tuple(
    " ".join([start, *([d] if dish else []), *([g] if guests else [])])
    for start, (d, g) in zip(first, then, strict=True)
  )


def describe(rng: random.Random, split: str) -> Row:
  facts = restaurant(rng, split)
  said = descriptions(facts)
  main = rng.randrange(len(said))
  return Row("describe", table(facts), (said[main], *said[:main], *said[main + 1 :]))


def table_of(rng: random.Random, split: str) -> Row:
  facts = restaurant(rng, split)
  return Row("table", rng.choice(descriptions(facts)), (table(facts),))


class Review(NamedTuple):
  """A review of a product and what it says."""

  text: str
  stars: int
  product: str
  points: tuple[str, str]  # "sturdy handle", in the order of the text


def review(rng: random.Random, split: str) -> Review:
  """Draws a review; its product and first part occur together in this split only."""
  draw = lambda: (rng.choice(SINGULAR), rng.sample(world.PARTS, 2))
  product, parts = draw()
  while world.split_of(product, parts[0]) != split:
    product, parts = draw()
  stars = rng.randint(1, 5)
  good, bad = rng.sample(world.PRAISE, 2), rng.sample(world.BLAME, 2)
  words = {1: bad, 2: (good[0], bad[0]), 3: (good[0], bad[0]), 4: (good[0], bad[0]), 5: good}[stars]
  (first, a), (second, b) = zip(rng.sample(words, 2), parts, strict=True)
  verdict = rng.choice(world.VERDICTS[stars])
  verdict = verdict[0].upper() + verdict[1:]
  whose, town = rng.choice(world.RELATIONS), rng.choice(world.PLACES)
  text = rng.choice(
    (
      f"The {a} of this {product} is {first} and the {b} is {second}. {verdict}.",
      f"{verdict}. My {product} has {with_article(first)} {a}, and its {b} is {second}.",
      f"I got this {product} for my {whose}. The {a} is {first}, the {b} {second}. {verdict}.",
      f"My {product} comes from {town}. Its {a} seems {first}. The {b} feels {second}. {verdict}.",
      f"{verdict}! The {a} was {first} and the {b} was {second}, says my {whose} of the {product}.",
    )
  )
  return Review(text, stars, product, (f"{first} {a}", f"{second} {b}"))


def rate(rng: random.Random, split: str) -> Row:
  drawn = review(rng, split)
  return Row("rate", drawn.text, (str(drawn.stars),))


def title(rng: random.Random, split: str) -> Row:
  drawn = review(rng, split)
  head, (first, second) = f"{TONES[drawn.stars]} {drawn.product}", drawn.points
  return Row(
    "title",
    drawn.text,
    (
      f"{head}: {first}, {second}",
      f"{head}: {second}, {first}",
      f"{head}: {first} and {second}",
      f"{head} with {first} and {second}",
    ),
  )


def answer(rng: random.Random, split: str) -> Row:
  """Draws a passage with a question; its person and place occur together in this split only."""
  person, place = "", ""
  while not person or world.split_of(person, place) != split:
    person, place = rng.choice(world.PEOPLE), rng.choice(world.PLACES)
  other = rng.choice([name for name in world.PEOPLE if name != person])
  job, day = rng.choice(JOBS), rng.choice(DAYS)
  thing, food = rng.choice(SINGULAR), rng.choice(world.DISHES)
  sentences = [
    (f"{person} lives in {place}.", f"Where does {person} live?", place),
    (f"{person} works as a {job}.", f"What is the work of {person}?", job),
    (f"On {day} {person} met {other}.", f"When did {person} meet {other}?", day),
    (f"{person} likes {food}.", f"What does {person} like?", food),
    (f"{other} gave {person} a new {thing}.", f"What did {other} give to {person}?", thing),
    (f"{person} often writes to {other}.", f"Who does {person} write to?", other),
  ]
  told = [sentences[0], *rng.sample(sentences[1:], 2)]
  rng.shuffle(told)
  _, question, reply = rng.choice(told)
  return Row("answer", " ".join(s for s, _, _ in told) + f" {question}", (reply,))


MAKERS = {"describe": describe, "table": table_of, "rate": rate, "title": title, "answer": answer}


def rows(split: str, seed: int = 0) -> list[dict]:
  """Makes a split: equally many rows of every task, shuffled, and no input twice."""
  split_rows = []
  for task, make in MAKERS.items():
    rng, drawn = random.Random(f"{seed} {split} {task}"), {}
    while len(drawn) < SIZES[split] // len(MAKERS):
      row = make(rng, split)
      drawn.setdefault(row.input, row)
    split_rows += [
      {
        "instruction": rng.choice(WORDINGS[task]),
        "input": row.input,
        "output": row.outputs[0] if split == "train" else list(row.outputs),
        "task": row.task,
      }
      for row in drawn.values()
    ]
  random.Random(f"{seed} {split}").shuffle(split_rows)
  return split_rows


def write(folder: Path, seed: int = 0) -> None:
  """Writes train.jsonl, validation.jsonl and test.jsonl."""
  folder.mkdir(parents=True, exist_ok=True)
  for split in SIZES:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(split, seed))
    (folder / f"{split}.jsonl").write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--out", type=Path, default=INSTRUCTIONS)
  write(parser.parse_args().out)
