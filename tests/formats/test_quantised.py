"""What is trained over a quantised base, compared in PyTorch over its dequantised weights."""

import json

import numpy as np
import pytest
from support import tiny

from jaxtune import peft
from jaxtune.api.export import export
from jaxtune.formats import card
from jaxtune.models import hf


@pytest.fixture(scope="module")
def base(tmp_path_factory):
  made = tiny.make("llama")
  folder = hf.save(made, made.params, tmp_path_factory.mktemp("bases") / "llama")
  return hf.load(str(folder), quantize="nf4")


def test_the_card_says_that_its_lines_load_another_base(base, tmp_path):
  laid = tiny.lay(base, dict(name="lora", rank=3), noise=0.1)
  text = (export(base, laid, tmp_path / "x").folder / "README.md").read_text()
  assert card.QUANTISED.format(form="nf4") in text


@pytest.mark.full
@pytest.mark.parametrize("how", [{}, {"format": "merged"}])
def test_exports_equal_ours(base, how, tmp_path, reload):
  laid = tiny.lay(base, dict(name="lora", rank=3, targets=(".*_proj",)), noise=0.1)
  made = export(base, peft.Adapted(*laid), tmp_path / "x", certify=True, reload=reload, **how)
  written = json.loads((made.folder / "certificate.json").read_text())
  assert written["passed"] and written["largest_logit_difference"] < 1e-4
  assert written["base"]["quantize"] == "nf4"
  assert np.isfinite(written["change_from_base"]) and written["change_from_base"] > 0.01
