"""How examples become arrays: one file for each form of examples.

Every file has `encode(tokenizer, examples, options) -> (Split, counts)`, where options are
`EncodeOptions`, of which an encoder reads what concerns it, and counts are `split.counts`. Files of
labelled rows also have `read_row(row, **columns) -> (fields, prompt, answers)`, which checks one
row; see `reading.read_columns`.

  text        prompts with answers, and plain text
  chat        conversations, by a chat template
  choices     prompts with several answers to choose from
  classify    texts, or pairs of them, with a class each
  regression  texts, or pairs of them, with a number each
  tokens      words with a tag each
  qa          questions with the places of their answers in a context

`whole_texts` is what classify and regression share.
"""
