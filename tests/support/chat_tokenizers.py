"""Tiny tokenizers with the special tokens of chat templates."""

from __future__ import annotations

import json

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

MARKS = [
  "<unk>", "<s>", "</s>", "<|start|>", "<|end|>", "<|head|>", "<|tail|>", "<|text|>", "<turn>",
  "</turn>", "[ASK]", "[/ASK]", "<|user|>", "<|bot|>",
]  # fmt: skip
TEXT = ["user assistant model system hello there how are you fine thanks and what is the sum"] * 3


def make(kind):
  """Trains a tiny tokenizer: byte-level pieces, or pieces with a mark for spaces."""
  backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=kind == "spaces"))
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  if kind == "bytes":
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
  else:
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    alphabet = [f"<0x{byte:02X}>" for byte in range(256)]
  trainer = trainers.BpeTrainer(
    vocab_size=400, special_tokens=[*MARKS, *(alphabet if kind == "spaces" else [])],
    initial_alphabet=alphabet if kind == "bytes" else ["▁"], show_progress=False,
  )  # fmt: skip
  backend.train_from_iterator(TEXT, trainer)
  whole = json.loads(backend.to_str())
  whole["added_tokens"] = whole["added_tokens"][: len(MARKS)]  # the bytes are no special tokens
  backend = Tokenizer.from_str(json.dumps(whole))
  return PreTrainedTokenizerFast(
    tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
  )
