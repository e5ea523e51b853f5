"""A byte-level tokenizer whose ids can be counted by hand, and writers of small files."""

from __future__ import annotations

import gzip
import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast


def _make_tokenizer(bos=False, eos_behind=False, eos=True, **options):
  """Bytes as tokens, plus <pad> 0, <s> 1 and </s> 2; optionally put around every text."""
  specials = {"<pad>": 0, "<s>": 1, "</s>": 2}
  letters = sorted(pre_tokenizers.ByteLevel.alphabet())
  vocabulary = specials | {letter: number for number, letter in enumerate(letters, 3)}
  backend = Tokenizer(models.BPE(vocabulary, []))
  backend.add_special_tokens(list(specials))
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  if bos or eos_behind:
    around = ("<s> " if bos else "") + "$A" + (" </s>" if eos_behind else "")
    backend.post_processor = processors.TemplateProcessing(
      single=around, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
  names = {"bos_token": "<s>", "pad_token": "<pad>"} | ({"eos_token": "</s>"} if eos else {})
  return PreTrainedTokenizerFast(tokenizer_object=backend, **names, **options)


@pytest.fixture(scope="session")
def tokenizer():
  return _make_tokenizer()


@pytest.fixture(scope="session")
def make_tokenizer():
  return _make_tokenizer


@pytest.fixture
def write(tmp_path):
  """Writes rows as JSON lines, or text or bytes as they are, and returns the path."""

  def run(name, content):
    path = tmp_path / name
    if isinstance(content, list):
      content = "".join(json.dumps(row) + "\n" for row in content)
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return str(path)

  return run
