"""What is trained on: masks, limits and the tokens that generation will see."""

from __future__ import annotations

import numpy as np
import pytest

from jaxtune.data import EncodeOptions
from jaxtune.data.encode import text
from jaxtune.data.prompts import encode_prompts
from jaxtune.data.templates import Example
from jaxtune.errors import UserError


def example(prompt, *answers, line=1):
  return Example(prompt, list(answers), {"line": line}, f"f.jsonl:{line}")


def trained(split, tokenizer, row=0):
  return tokenizer.decode(split.arrays["tokens"][row][split.arrays["weights"][row] > 0])


def test_the_answer_and_its_stop_token_are_trained_and_nothing_else(tokenizer):
  rows = [example("ask\n", "yes", "no"), example("a longer ask\n", "y")]
  split, counts = text.encode(tokenizer, rows, EncodeOptions())
  assert split.arrays["tokens"].shape == (2, 16)
  kinds = {name: array.dtype for name, array in split.arrays.items()}
  assert kinds == {"tokens": np.int32, "mask": bool, "weights": np.float32}
  assert trained(split, tokenizer) == "yes</s>"
  assert tokenizer.decode(split.arrays["tokens"][0][split.arrays["mask"][0]]) == "ask\nyes</s>"
  assert split.references == [["yes", "no"], ["y"]]
  padding = ~split.arrays["mask"]
  assert not split.arrays["tokens"][padding].any() and not split.arrays["weights"][padding].any()
  assert counts["trained_tokens"] == 4 + 2 and counts["tokens"] == 8 + 15 and counts["kept"] == 2


def test_a_changed_answer_leaves_the_prompt_as_generation_sees_it(tokenizer):
  one, _ = text.encode(tokenizer, [example("ask\n", "yes")], EncodeOptions())
  two, _ = text.encode(tokenizer, [example("ask\n", "nay")], EncodeOptions())
  changed = (one.arrays["tokens"] != two.arrays["tokens"])[0]
  assert (one.arrays["weights"] == two.arrays["weights"]).all()
  assert (one.arrays["weights"][0][changed] == 1).all()
  assert one.prompts == two.prompts == encode_prompts(tokenizer, ["ask\n"])
  assert one.arrays["tokens"][0, :4].tolist() == one.prompts[0]


@pytest.mark.parametrize(
  "options", [{"bos": True}, {"bos": True, "eos_behind": True}, {"add_bos_token": True}]
)
def test_special_tokens_stand_where_the_tokenizer_puts_them(make_tokenizer, options):
  tokenizer = make_tokenizer(**options)
  split, _ = text.encode(tokenizer, [example("ab", "c"), example(None, "abc")], EncodeOptions())
  for row in split.arrays["tokens"]:
    assert tokenizer.decode(row, skip_special_tokens=False).startswith("<s>abc</s><pad>")
  assert tokenizer.decode(split.prompts[0]) == "<s>ab"
  assert split.arrays["weights"][0, :6].tolist() == [0, 0, 0, 1, 1, 0]
  assert split.arrays["weights"][1, :6].tolist() == [0, 1, 1, 1, 1, 0]


def test_plain_text_trains_on_all_but_the_first_token(tokenizer):
  split, _ = text.encode(tokenizer, [example(None, "abc")], EncodeOptions())
  assert split.arrays["weights"][0].tolist() == [0, 1, 1, 1, 0, 0, 0, 0]
  assert split.prompts == [[]] and split.references == [[]]


def test_an_empty_prompt_does_not_train_what_nothing_predicts(tokenizer):
  split, _ = text.encode(tokenizer, [example("", "abc")], EncodeOptions())
  assert split.arrays["weights"][0, :5].tolist() == [0, 1, 1, 1, 0]


def test_too_long(tokenizer):
  rows = [example("ab", "c"), example("a" * 8, "bcdef", line=2), example("a" * 20, "b", line=3)]
  message = r"f.jsonl:2: 14 tokens.*max_length=10; so are 2 of 3.*:3.* 'skip' or 'truncate'$"
  with pytest.raises(UserError, match=message):
    text.encode(tokenizer, rows, EncodeOptions(max_length=10))
  with pytest.raises(UserError, match="f.jsonl:1: 12 tokens.* 'skip' or 'truncate' or 'chunk'$"):
    text.encode(tokenizer, [example(None, "a" * 11)], EncodeOptions(max_length=10))
  split, counts = text.encode(tokenizer, rows, EncodeOptions(max_length=10, too_long="skip"))
  assert counts["skipped"] == {"too_long": 2} and split.where == ["f.jsonl:1"]
  with pytest.raises(UserError, match="f.jsonl:3: no token to train on"):
    text.encode(tokenizer, rows, EncodeOptions(max_length=10, too_long="truncate"))
  split, counts = text.encode(
    tokenizer, rows, EncodeOptions(max_length=10, too_long="truncate", no_target="skip")
  )
  assert counts["skipped"] == {"no_target": 1} and counts["truncated"] == 2
  assert split.arrays["tokens"].shape == (2, 10)
  assert trained(split, tokenizer, 1) == "bc"


def test_chunks_cover_a_document_in_order(tokenizer):
  letters = "".join(chr(ord("a") + n % 26) for n in range(83))
  split, counts = text.encode(
    tokenizer, [example(None, letters)], EncodeOptions(max_length=32, too_long="chunk")
  )
  joined = split.arrays["tokens"][split.arrays["mask"]]
  assert tokenizer.decode(joined) == letters + "</s>"
  assert split.arrays["weights"].sum() == 84 - 3 and (split.arrays["weights"][:, 0] == 0).all()
  assert split.where == ["f.jsonl:1"] * 3
  split, counts = text.encode(
    tokenizer, [example(None, letters)], EncodeOptions(max_length=38, too_long="chunk")
  )
  assert counts["kept"] == 2 and counts["skipped"] == {"short_tail": 1}
  with pytest.raises(UserError, match="f.jsonl:1: too_long='chunk' is for plain text"):
    text.encode(tokenizer, [example("a", letters)], EncodeOptions(max_length=32, too_long="chunk"))


@pytest.mark.parametrize("answers", [[], [""], [" \n"]])
def test_no_target(tokenizer, answers):
  rows = [example("a", "b"), example("a", *answers, line=7)]
  with pytest.raises(UserError, match=r"f.jsonl:7: no token to train on.*1 of 2"):
    text.encode(tokenizer, rows, EncodeOptions())
  split, counts = text.encode(tokenizer, rows, EncodeOptions(no_target="skip"))
  assert counts["skipped"] == {"no_target": 1} and len(split.rows) == 1


DOUBLED = [  # prompt, answer, what comes twice, and the text that is left of it
  ("<s>ab", "c", "bos", "<s>abc</s>"),
  ("<s><s>ab</s>", "c", "bos", "<s>ab</s>c</s>"),
  ("ab", "c</s>", "eos", "<s>abc</s>"),
  ("ab", "c</s>\n", "eos", "<s>abc</s>"),
  ("ab", "c</s>d", "eos", "<s>abc</s>"),
  (None, "<s>abc", "bos", "<s>abc</s>"),
  (None, "ab</s>c</s>", "eos", "<s>ab</s>c</s>"),
]


@pytest.mark.parametrize(("prompt", "answer", "twice", "left"), DOUBLED)
def test_special_tokens_that_would_come_twice(make_tokenizer, prompt, answer, twice, left):
  tokenizer = make_tokenizer(bos=True)
  rows = [example("ab", "c"), example(prompt, answer, line=7)]
  token = {"bos": "<s>", "eos": "</s>"}[twice]
  with pytest.raises(UserError, match=rf"^f.jsonl:7: .*'{token}'.*\(in 1 of 2 examples\).*'strip'"):
    text.encode(tokenizer, rows, EncodeOptions())
  for policy in ("strip", "allow"):
    split, counts = text.encode(tokenizer, rows, EncodeOptions(special_tokens=policy))
    assert counts["special_tokens"] == {twice: 1}
    whole = tokenizer.decode(split.arrays["tokens"][1][split.arrays["mask"][1]])
    assert whole == (left if policy == "strip" else f"<s>{prompt or ''}{answer}</s>")
  stripped, _ = text.encode(tokenizer, rows, EncodeOptions(special_tokens="strip"))
  if prompt is not None:
    assert stripped.references[1] == ["c"]
    assert encode_prompts(tokenizer, [prompt], special_tokens="strip") == stripped.prompts[1:]
  if twice == "bos" and prompt is not None:
    with pytest.raises(UserError, match="^the prompt '<s>.*begins with '<s>'"):
      encode_prompts(tokenizer, [prompt], special_tokens="error")


def test_special_tokens_that_come_once(make_tokenizer):
  """A template that writes the BOS that its tokenizer does not put, and turns that end in EOS."""
  rows = [example("<s>ab</s>\n", "c")]
  split, counts = text.encode(make_tokenizer(), rows, EncodeOptions())
  assert "special_tokens" not in counts and split.prompts[0][:1] == [1]
  split, counts = text.encode(
    make_tokenizer(eos_behind=True), [example("ab", "c")], EncodeOptions(decoder_start=(0,))
  )
  assert "special_tokens" not in counts
  with pytest.raises(UserError, match="the text holds '</s>'"):
    text.encode(
      make_tokenizer(eos_behind=True), [example("ab</s>", "c")], EncodeOptions(decoder_start=(0,))
    )
  split, _ = text.encode(
    make_tokenizer(eos_behind=True),
    [example("ab</s>", "c")],
    EncodeOptions(decoder_start=(0,), special_tokens="strip"),
  )
  assert split.arrays["inputs"][0, :4].tolist() == [*split.prompts[0], 0]
  assert split.prompts[0][2] == 2


def test_refused_options(tokenizer, make_tokenizer):
  with pytest.raises(UserError, match="too_long is 'chunks'.*did you mean 'chunk'"):
    text.encode(tokenizer, [], EncodeOptions(too_long="chunks"))
  with pytest.raises(UserError, match="no eos token"):
    text.encode(make_tokenizer(eos=False), [example("a", "b")], EncodeOptions())
  with pytest.raises(UserError, match="max_length is 1"):
    text.encode(tokenizer, [example("a", "b")], EncodeOptions(max_length=1))


def test_the_hash_is_of_the_arrays(tokenizer):
  hashes = [
    text.encode(tokenizer, [example("a", answer)], EncodeOptions())[1]["sha256"] for answer in "bbc"
  ]
  assert hashes[0] == hashes[1] != hashes[2]
