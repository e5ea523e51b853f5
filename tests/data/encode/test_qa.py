"""Questions, windows and answers: there and back, and against a search over all pairs."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from support.reading import read

from jaxtune.data import EncodeOptions
from jaxtune.data.encode import qa
from jaxtune.errors import UserError
from jaxtune.models import tokenizer as tokenizers

CONTEXT = "The cat sat on the mat, in San Francisco; where is the river Zürich now? Not far away."


def row(answer=None, question="where is the cat", context=CONTEXT):
  answers = [] if answer is None else [{"text": answer, "answer_start": context.index(answer)}]
  return {"question": question, "context": context, "answers": answers}


ANSWERS = ["The cat", "mat", "San Francisco", "river Zürich", "far away.", None, "ran"]
ROWS = [row(answer) for answer in ANSWERS]


def encode(tokenizer, rows=ROWS, **options):
  return qa.encode(tokenizer, read("qa", rows)[0], EncodeOptions(**options))


def gold(split):
  """Logits that are sure of the right tokens."""
  T = np.arange(split.width)
  return [9.0 * (T[None] == split.arrays[name][:, None]) for name in ("starts", "ends")]


def test_answers_survive_the_way_there_and_back(wordpiece, bytepieces, decoder):
  for tokenizer in (wordpiece, bytepieces, decoder):
    split, counts = encode(tokenizer)
    assert split.examples == counts["windows"] == 7 and counts["unanswerable"] == 1
    texts = qa.answer_texts(split, *gold(split))
    whole = [answer or "" for answer in ANSWERS]
    # Half a word has the token that it stands in.
    assert texts[:-1] == whole[:-1] and whole[-1] in texts[-1]
    assert split.references == [[answer] for answer in whole]
    assert split.arrays["starts"][5] == split.arrays["ends"][5] == 0
    assert (split.arrays["context"] <= split.arrays["mask"]).all()


def test_the_context_is_the_second_text(wordpiece, decoder):
  split, _ = encode(wordpiece)
  truth = wordpiece("where is the cat", CONTEXT)
  assert split.arrays["tokens"][0][split.arrays["mask"][0]].tolist() == truth.input_ids
  assert split.arrays["types"][0][split.arrays["mask"][0]].tolist() == truth.token_type_ids
  here = [number == 1 for number in truth.sequence_ids(0)]
  assert split.arrays["context"][0][: len(here)].tolist() == here
  split, _ = encode(decoder)
  assert decoder.decode(split.arrays["tokens"][0][split.arrays["mask"][0]]) == (
    "where is the cat\n" + CONTEXT
  )
  assert decoder.decode(split.arrays["tokens"][0][split.arrays["context"][0]]) == CONTEXT
  assert "types" not in split.arrays


def test_windows_cover_the_context_and_hold_the_answer_where_they_can(wordpiece):
  whole, _ = encode(wordpiece)
  split, counts = encode(wordpiece, max_length=24, stride=6)
  assert counts["windows"] == split.examples > 7 and counts["kept"] == 7 and split.width <= 24
  for example in range(7):
    rows = np.flatnonzero(split.arrays["example"] == example)
    pieces = [split.arrays["tokens"][r][split.arrays["context"][r]].tolist() for r in rows]
    joined = pieces[0] + [token for piece in pieces[1:] for token in piece[6:]]
    assert joined == whole.arrays["tokens"][example][whole.arrays["context"][example]].tolist()
    for r in rows:
      first, last = split.arrays["starts"][r], split.arrays["ends"][r]
      offsets, here = split.arrays["offsets"][r], split.arrays["context"][r]
      spans = split.rows[example]["spans"]
      holds = bool(spans) and (
        offsets[here][0, 0] <= spans[0][0] and spans[0][1] <= offsets[here][-1, 1]
      )
      assert (last > 0) == holds
      if holds and example < 6:
        assert (offsets[first, 0], offsets[last, 1]) == spans[0]
  texts = qa.answer_texts(split, *gold(split))
  assert texts[:-1] == [answer or "" for answer in ANSWERS[:-1]]
  assert counts["cut_answers"] == 0 and len(texts) == len(split.references) == len(split.rows)


def test_a_tokenizer_that_would_cut_beginnings_gives_the_same_windows(wordpiece, tmp_path):
  wordpiece.save_pretrained(tmp_path)
  file = tmp_path / "tokenizer_config.json"
  file.write_text(json.dumps(json.loads(file.read_text()) | {"truncation_side": "left"}))
  options = {"max_length": 24, "stride": 4}
  (mine, _), (theirs, _) = (
    encode(tokenizer, **options) for tokenizer in (tokenizers.load(None, tmp_path), wordpiece)
  )
  for name in ("tokens", "starts", "ends"):
    assert mine.arrays[name].tolist() == theirs.arrays[name].tolist()


def test_an_answer_longer_than_a_window_is_counted(wordpiece):
  rows = [row("The cat sat on the mat, in San Francisco; where is the river")]
  _, counts = encode(wordpiece, rows, max_length=16, stride=2)
  assert counts["cut_answers"] == 1 and counts["kept"] == 1


def test_decoding_is_the_best_allowed_pair_of_all(wordpiece):
  split, _ = encode(wordpiece, max_length=24, stride=6)
  generator = np.random.default_rng(0)
  starts, ends = generator.normal(size=(2, split.examples, split.width))
  texts = qa.answer_texts(split, starts, ends, n_best=split.width, max_tokens=4)
  for example, text in enumerate(texts):
    found, nulls = [], []
    for r in np.flatnonzero(split.arrays["example"] == example):
      nulls.append(starts[r, 0] + ends[r, 0])
      for i in range(split.width):
        for j in range(i, min(i + 4, split.width)):
          if split.arrays["context"][r, i] and split.arrays["context"][r, j]:
            offsets = split.arrays["offsets"][r]
            found.append((starts[r, i] + ends[r, j], CONTEXT[offsets[i, 0] : offsets[j, 1]]))
    score, best = max(found)
    assert text == (best.strip() if score >= min(nulls) else "")
  answerable, _ = encode(wordpiece, ROWS[:2])
  sure_of_none = np.zeros((2, answerable.width))
  sure_of_none[:, 0] = 9
  assert all(qa.answer_texts(answerable, sure_of_none, sure_of_none))


def test_refusals(wordpiece):
  with pytest.raises(
    UserError, match=r"f:1: the question has \d+ tokens, so that max_length=12 with"
  ):
    encode(wordpiece, max_length=12, stride=6)
  rows = [
    row("mat", question="where is the cat now where is the cat now"),
    row("mat", question="cat"),
  ]
  split, counts = encode(wordpiece, rows, max_length=12, stride=2, too_long="skip")
  assert counts["skipped"] == {"too_long": 1} and split.where == ["f:2"]
  with pytest.raises(UserError, match="finding answers needs a fast tokenizer"):
    encode(SimpleNamespace(is_fast=False))
  with pytest.raises(UserError, match="data.stride is -1, expected 0 tokens"):
    encode(wordpiece, max_length=24, stride=-1)
  silent = row("\u0001", context="the \u0001 cat")
  with pytest.raises(UserError, match="f:2: the tokenizer leaves no token of the answer"):
    encode(wordpiece, [ROWS[0], silent])
  split, counts = encode(wordpiece, [ROWS[0], silent, ROWS[1]], malformed="skip")
  assert counts["skipped"] == {"no_token": 1} and split.where == ["f:1", "f:3"]
  assert split.arrays["example"].tolist() == [0, 1]
