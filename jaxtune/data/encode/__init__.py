"""How examples become arrays: one file for each form of examples.

Every file has `encode(tokenizer, examples, options) -> (Split, counts)`. The options are
`EncodeOptions`, of which an encoder reads some, and the counts are `split.counts`. Files for rows
with labels also have `read_row(row, **columns) -> (fields, prompt, answers)`, which checks one row;
see `reading.read_columns`.

  text        prompts with answers, and plain text
  chat        conversations, by a chat template
  choices     prompts with several answers to choose from
  pairs       prompts with two answers, of which people preferred one (rated: of several answers)
  thumbs      prompts with one answer, which people liked or did not like
  classify    texts, or pairs of them, with a class each
  regression  texts, or pairs of them, with a number each
  tokens      words with a tag each
  qa          questions, each with a context and the places of its answers there

`whole_texts` is what classify and regression share, `shared` what all encoders do.
"""
