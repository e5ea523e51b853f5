"""Tiny tokenizers of the three kinds that encoders and decoders have."""

from __future__ import annotations

import pytest
from tokenizers import (
  Tokenizer,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
  trainers,
)
from transformers import PreTrainedTokenizerFast

TEXT = ["the cat sat on the mat , in San Francisco ; where is the river now ? not far away"] * 3


@pytest.fixture(scope="session")
def wordpiece():
  """As BERT: [CLS] a [SEP] b [SEP] with token types, lower case, control characters dropped."""
  backend = Tokenizer(models.WordPiece(unk_token="[UNK]"))
  backend.normalizer = normalizers.BertNormalizer()
  backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
  trainer = trainers.WordPieceTrainer(vocab_size=70, special_tokens=specials, show_progress=False)
  backend.train_from_iterator(TEXT, trainer)
  backend.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
    special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
  )  # fmt: skip
  return PreTrainedTokenizerFast(
    tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
    sep_token="[SEP]", model_input_names=["input_ids", "token_type_ids", "attention_mask"],
  )  # fmt: skip


@pytest.fixture(scope="session", params=[False, True], ids=["plain", "prefix_space"])
def bytepieces(request):
  """As RoBERTa: <s> a </s></s> b </s>, no token types, byte-level."""
  backend = Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=request.param)
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=320, special_tokens=["<s>", "<pad>", "</s>"], show_progress=False,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
  )  # fmt: skip
  backend.train_from_iterator(TEXT, trainer)
  backend.post_processor = processors.RobertaProcessing(
    ("</s>", 2), ("<s>", 0), trim_offsets=True, add_prefix_space=request.param
  )
  return PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
    cls_token="<s>", sep_token="</s>", add_prefix_space=request.param,
  )  # fmt: skip


@pytest.fixture(scope="session")
def decoder(make_tokenizer):
  """As GPT-2: bytes, no special tokens of its own; eos is 2."""
  return make_tokenizer()
