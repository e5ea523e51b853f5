"""Tasks with labels as data: rows to checked examples, examples to the arrays of an objective.

`read` checks rows; a function named after the objective (`classify`, `regression`, `tokens`, `qa`,
`choices`) makes (Split, counts) of examples; `word_tags` and `answer_texts` turn predictions back.
"""

from jaxtune.data.labelled.choices import alike, choices, unfold
from jaxtune.data.labelled.reading import read
from jaxtune.data.labelled.spans import answer_texts, qa
from jaxtune.data.labelled.texts import classify, regression
from jaxtune.data.labelled.words import tokens, word_tags

__all__ = [
  "alike", "answer_texts", "choices", "classify", "qa", "read", "regression", "tokens", "unfold",
  "word_tags",
]  # fmt: skip
