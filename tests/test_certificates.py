"""Exports of every method and every family are certified; `make certify` has all of them."""

import certificates
import pytest

LABELS = certificates.labels()
LORAS = ("rsLoRA, all linear", "LoRA-FA", "OLoRA")  # written as a LoRA of other numbers
CORRUPTED = ("LoRA", "DoRA, all linear", "IA3", "prompt")
# What is left to `make certify`: other rows run the same code. Writing a delta knows Linear layers,
# GPT-2's fused ones and names; merging knows no family, and what writes merged weights no method.
LEFT = {
  ("peft", "gpt2"): (
    "prefix, MLP", *(f"{name}: one tensor corrupted" for name in CORRUPTED),
  ),
  ("peft", "llama (grouped query)"): (*LORAS, "LoRA", "prefix, MLP", "P-tuning"),
  ("peft", "bert (classify)"): (
    *LORAS, "LoRA, all linear", "PiSSA", "AdaLoRA, pruned", "VeRA, of outputs", "LoHa",
    "LoKr, both factors", "prefix, MLP", "P-tuning",
  ),
  ("peft", "t5"): (*LORAS, "LoRA", "PiSSA", "LoHa", "LoKr, both factors"),
  ("adapterhub", "llama (grouped query)"): (
    "adapter, of an odd width", "adapter with LayerNorms", "adapter, widths by layer",
    "Compacter++, own rules",
  ),
  ("merged", "gpt2"): (
    "last layers and norm", "PiSSA", "DoRA, all linear", "AdaLoRA, pruned", "VeRA, of outputs",
    "LoHa", "LoKr, both factors", "norms", "LoRA, all linear: one tensor corrupted",
  ),
  ("merged", "llama (grouped query)"): ("full",),
}  # fmt: skip
ROWS = [
  pytest.param(i, id=", ".join([form, family, name]))
  for i, (form, family, name) in enumerate(LABELS)
  if name not in LEFT.get((form, family), ())
]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
  folder = tmp_path_factory.mktemp("certificates")
  return list(certificates.jobs(certificates.models(folder), folder))


@pytest.mark.full
@pytest.mark.parametrize("index", ROWS)
def test_an_export(index, jobs, reload_of):
  form, *_, run = jobs[index]
  row = run(reload_of(form))
  assert row["verdict"] in ("passed", "refused", "found")
  assert row["change"] is None or row["change"] > 1e-3  # a method that does nothing shows nothing
