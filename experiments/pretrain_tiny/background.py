"""Writes background text in the made-up world of the bundled instructions: guides, diaries, tales.

It never uses a restaurant name or a praised product that the instructions' validation or test
rows hold out, nor the instructions' form.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from grammar import DIARY, ENDS, GUIDE, PRODUCT, TALE, TURNS

from jaxtune.assets import world

LISTS = {
  "adjective": world.ADJECTIVES,
  "noun": world.NOUNS,
  "person": world.PEOPLE,
  "place": world.PLACES,
  "relation": world.RELATIONS,
  "guests": world.GUESTS,
  "praise": world.PRAISE,
  "praise_b": world.PRAISE,
  "blame": world.BLAME,
  "part": world.PARTS,
  "food_word": (
    "tender",
    "salty",
    "creamy",
    "crisp",
    "cold",
    "burnt",
    "fresh",
    "too sweet",
    "spicy",
    "mild",
    "rich",
    "dry",
    "bitter",
    "excellent",
    "very good",
    "dull",
    "a little sour",
    "warm",
    "simple",
    "the best we had",
  ),
  "many": ("two", "three", "four", "five"),
  "many_b": ("one", "two", "three", "four", "five"),
  "number": tuple(str(n) for n in range(2, 100)),
  "number_b": tuple(str(n) for n in range(100, 999)),
  "year": tuple(str(n) for n in range(1400, 1990)),
  "hour": ("six", "seven", "eight", "nine", "ten", "eleven", "midnight", "noon"),
  "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"),
  "season": ("spring", "summer", "autumn", "winter"),
  "colour": ("white", "green", "blue", "yellow", "red", "grey", "brown", "pink", "black"),
  "animal": (
    "cat",
    "dog",
    "goat",
    "horse",
    "hen",
    "parrot",
    "donkey",
    "goose",
    "mouse",
    "owl",
    "pig",
  ),
  "instrument": ("fiddle", "drum", "guitar", "flute", "piano", "trumpet", "harp"),
  "job": (
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
    "fisherman",
    "shepherd",
    "clerk",
    "painter",
    "singer",
    "judge",
  ),
  "weather_word": (
    "raining",
    "snowing",
    "windy",
    "warm",
    "cold",
    "foggy",
    "too hot",
    "stormy",
    "mild",
  ),
  "price_word": ("cheap", "expensive", "a fair price", "too much", "less than I feared"),
}
STARS = {
  1: ("one star", "1 star"),
  2: ("two stars", "2 stars"),
  3: ("three stars", "3 stars"),
  4: ("four stars", "4 stars"),
  5: ("five stars", "5 stars"),
}


def name(rng: random.Random) -> str:
  """Draws a restaurant name that the instructions do not hold out."""
  while True:
    drawn = f"The {rng.choice(world.NAME_FIRST)} {rng.choice(world.NAME_SECOND)}"
    if world.split_of(drawn) == "train":
      return drawn


def facts(rng: random.Random) -> dict[str, str]:
  """Draws what stays the same through a document: places, names, dishes, people."""
  drawn = {"town": rng.choice(world.PLACES), "noun_b": rng.choice(world.NOUNS)}
  for letter, dish in zip("abc", rng.sample(world.DISHES, 3), strict=True):
    drawn |= {f"name_{letter}": name(rng), f"dish_{letter}": dish}
    drawn |= {
      f"cuisine_{letter}": rng.choice(world.CUISINES),
      f"area_{letter}": rng.choice(world.AREAS),
    }
  drawn["person"], drawn["person_b"] = rng.sample(world.PEOPLE, 2)
  drawn["part"], drawn["part_b"] = rng.sample(world.PARTS, 2)
  while (
    world.split_of(drawn.setdefault("product", rng.choice(world.PRODUCTS)), drawn["part"])
    != "train"
  ):
    drawn["product"] = rng.choice(world.PRODUCTS)
  return drawn


def expand(text: str, rng: random.Random, rules: dict, fixed: dict[str, str]) -> str:
  """Replaces every {rule} by a fact, an expanded alternative or a random word."""

  def one(match: re.Match) -> str:
    key = match.group(1)
    if key in fixed:
      return fixed[key]
    return expand(rng.choice(rules.get(key) or LISTS[key]), rng, rules, fixed)

  return re.sub(r"\{(\w+)\}", one, text)


def tidy(text: str) -> str:
  """Mends articles, capitals and spaces."""
  text = re.sub(r"\b([Aa]) (?=[aeiouAEIOU])(?!one\b|uni|use)", r"\1n ", text)
  text = re.sub(r"(^|[.!?]\s+|\n|\n\")([a-z])", lambda m: m.group(1) + m.group(2).upper(), text)
  text = re.sub(r"(?<=[a-z])(?:ss|sh|ch)s\b", lambda m: m.group(0)[:-1] + "es", text)
  return re.sub(r" +", " ", text).replace(" \n", "\n").strip()


def document(rng: random.Random) -> str:
  """Writes one document."""
  rules = rng.choices((GUIDE, DIARY, PRODUCT, TALE), weights=(4, 3, 4, 2))[0]
  fixed = facts(rng)
  if rules is PRODUCT:
    stars = rng.randint(1, 5)
    verdict = rng.choice(world.VERDICTS[stars])
    fixed |= {
      "stars": rng.choice(STARS[stars]),
      "verdict": verdict,
      "verdict_plain": rng.choice(("so", "what it was", "a matter of taste")),
      "tone": rng.choice(world.PRAISE if stars > 3 else world.BLAME),
    }
    rules = rules | {"turn": TURNS[stars], "end": ENDS}
  return tidy(expand("{doc}", rng, rules, fixed))


def documents(characters: int, seed: int = 0) -> Iterator[str]:
  """Yields distinct documents until they hold this many characters."""
  rng, seen, written = random.Random(seed), set(), 0
  while written < characters:
    text = document(rng)
    if text not in seen:
      seen.add(text)
      written += len(text)
      yield text
