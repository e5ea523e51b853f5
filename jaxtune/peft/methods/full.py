"""Full fine-tuning: every weight is trained, and nothing stays frozen."""

from jaxtune import peft


def method() -> peft.Method:
  """Trains every leaf of the model, which must not be quantised, in fp32."""
  return peft.Method("full", trains=lambda path: True)
