"""Rows to text: the prompt a model reads and the answers it should give.

A prompt template is a Jinja string, rendered in a sandbox with the row's columns as variables:
"{{ mr }}\n" or "{% if title %}{{ title }}: {% endif %}{{ text }}\nStars: ". A column whose name is
no Jinja name is written `row["its name"]`. White space matters: the answer follows the prompt
directly, so the template ends in whatever separates the two.

  library       templates by name, one file a task beside this one; `bundled` lists them
  promptsource  YAML files, read safely
  sandbox       Jinja, and the filters that are added to it
  formats       which templates a split is read by, and what its columns are called there
  examples      rows to examples
"""

from jaxtune.data.templates.examples import Example, render, render_prompts, variants
from jaxtune.data.templates.formats import INSTRUCTION, Format, choose
from jaxtune.data.templates.library import BLANK, Template, bundled, resolve

__all__ = [
  "BLANK", "INSTRUCTION", "Example", "Format", "Template", "bundled", "choose", "render",
  "render_prompts", "resolve", "variants",
]  # fmt: skip
