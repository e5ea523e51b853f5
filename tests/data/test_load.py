"""Options of a whole data set: mixtures by column and by file, and what cannot go together."""

import json
from pathlib import Path

import numpy as np
import pytest
from support import folders, made_trials, tiny

from jaxtune import config, data, objectives, sharding
from jaxtune.errors import UserError
from jaxtune.runs import programs, trial
from jaxtune.runs.trial import with_config


@pytest.fixture(scope="module")
def files(tmp_path_factory):
  folder = tmp_path_factory.mktemp("files")
  rows = [
    {"prompt": f"a{i % 10} {'b1 ' * (i % 4)}:", "completion": f"c{i // 10}"}
    | {"task": "xy"[i % 3 // 2]}
    for i in range(30)
  ]
  made = {"train": folders.write(folder, "train.jsonl", rows[:24])}
  made["test"] = folders.write(folder, "test.jsonl", rows[24:])
  for task in "xy":
    own = [row for row in rows[:24] if row["task"] == task]
    made[task] = folders.write(folder, f"{task}.jsonl", own)
  labels = [{"text": f"b{i} c{i}", "label": ["no", "yes"][i % 2]} for i in range(6)]
  made["labels"] = folders.write(folder, "labels.tsv", labels)
  made["maybe"] = folders.write(folder, "maybe.tsv", [{"text": "b9", "label": "maybe"}])
  made["plain"] = folders.write(folder, "plain.jsonl", [{"text": "c1 c2 c3 c4 " * 10}] * 3)
  turns = [{"role": role, "content": "a1 b2"} for role in ("user", "assistant")]
  made["chats"] = folders.write(folder, "chats.jsonl", [{"messages": turns}] * 2)
  answers = {"text": ["b1"], "answer_start": [3]}
  asked = {"question": "a1 ?", "context": "a1 b1 " * 10, "answers": answers}
  made["questions"] = folders.write(folder, "questions.jsonl", [asked] * 2)
  made["small"] = folders.write(folder, "small.jsonl", [{"prompt": "a1", "completion": "a1"}] * 2)
  made["none"] = folders.write(folder, "none.jsonl", [])
  return made


@pytest.fixture(scope="module")
def load(files):
  tokenizers = {family: folders.tokenizer(family) for family in ("llama", "bert")}

  def go(
    objective="sft", start=(), vocabulary=None, positions=None, family="llama", **options
  ):  # fmt: skip
    named = {k: files.get(v, v) if isinstance(v, str) else v for k, v in options.items()}
    module, own = objectives.module(objective), data.DataOptions(**named)
    return data.load(tokenizers[family], module, own, start, vocabulary, positions)

  return go


def test_a_mixture_of_conversations_stops_where_each_task_s_turns_end(load, files, llama):
  """The one ends its turns in <pad>, the other in the tokenizer's eos."""
  ended = "{% for m in messages %}{{ m.content }} END {% endfor %}"
  own = {end: ended.replace("END", end) for end in ("<pad>", "</s>")}
  alone = {end: load(train="chats", chat_template=source) for end, source in own.items()}
  assert [alone[end].stop_tokens for end in own] == [(1, 0), (1,)]
  tasks = {end: {"train": files["chats"], "chat_template": source} for end, source in own.items()}
  mixed = load(tasks=tasks)
  assert mixed.stop_tokens == (1, 0)
  with pytest.raises(UserError, match=r"different tokens, \[1, 0\] and \[1\]: run two"):
    data.align([alone["<pad>"], alone["</s>"]])
  made = made_trials.make(llama, False)._replace(dataset=mixed)
  full = made_trials.complete({"name": "lora"})
  evaluator = programs.make_evaluator(with_config(made, full), sharding.make("jit", {"data": 1}), 1)
  assert evaluator.stop_tokens == (1, 0)


def test_a_column_and_files_make_the_same_mixture(load, files):
  column = load(train="train", tasks="task").train
  joined = load(tasks={task: {"train": files[task]} for task in "xy"}).train
  place = lambda split: {
    tuple(tokens[mask]): task
    for tokens, mask, task in zip(
      split.arrays["tokens"], split.arrays["mask"], split.tasks, strict=True
    )
  }
  assert place(column) == place(joined) and len(joined.tasks) == 24
  assert [len(pool.rows) for pool in column.order[0].pools] == [16, 8]
  uneven = load(train="train", tasks="task", mixture={"x": 1, "y": 3})
  assert [pool.share for pool in uneven.train.order[0].pools] == [0.25, 0.75]


def test_a_limit_keeps_the_rare_tasks_of_a_column(load, files):
  """Four rows of sixteen x and eight y, or of all x and one y: two of each, or three and one."""
  found = load(train="train", tasks="task", validation="train", overlap="allow", eval_limit=4)
  assert sorted(found.validation.tasks) == ["x", "x", "y", "y"]
  rows = [json.loads(line) for line in Path(files["train"]).read_text().splitlines()]
  ys = [row for row in rows if row["task"] == "y"][1:]
  few = Path(files["train"]).with_name("few.jsonl")
  few.write_text("".join(json.dumps(row) + "\n" for row in rows if row not in ys))
  found = load(train=str(few), tasks="task", validation=str(few), overlap="allow", eval_limit=4)
  assert sorted(found.validation.tasks) == ["x", "x", "x", "y"]


def test_what_another_task_trains_on_is_compared_too(load, files):
  tasks = {"x": {"train": files["x"], "test": files["y"]}, "y": {"train": files["y"]}}
  tasks["y"]["test"] = files["x"]
  with pytest.raises(UserError, match="24 examples of train are in test too: x.jsonl:1 = x.jsonl"):
    try:
      load(tasks=tasks)
    except UserError as error:
      raise UserError(str(error).replace(str(Path(files["x"]).parent) + "/", "")) from None
  assert load(tasks=tasks, overlap="allow").report["overlap"]["train/test"]["shared"] == 24
  tasks["y"]["test"] = files["test"]
  with pytest.raises(UserError, match="train split is empty: other splits have all of its 8 rows"):
    load(tasks=tasks, overlap="drop")


def test_only_some_rows(load):
  some = load(train="train", only={"task": "y"})
  assert some.report["file_rows"]["train"] == 8
  assert all(row["task"] == "y" for row in some.train.rows)
  with pytest.raises(UserError, match="no row of train has 'z' as its task"):
    load(train="train", only={"task": ["y", "z"]})


def test_general_text_is_cut_into_the_same_windows_whatever_is_trained_on(load):
  for train in ("small", "plain"):
    found = load(train=train, general="plain", positions=32)
    lengths = found.general.arrays["mask"].sum(1).tolist()
    assert lengths == [16] * 6, "half of the positions are left for virtual tokens"
    assert found.report["general"]["tokens"] == sum(lengths)
  assert load(train="small", general="plain").general.examples == 3, "windows of up to 512 tokens"


def test_general_text_may_have_empty_rows(load, tmp_path):
  path = folders.write(tmp_path, "general.jsonl", [{"text": ""}, {"text": "c1 c2"}])
  with pytest.raises(UserError, match="general.jsonl:1: no token to train on"):
    load(train="small", general=path)
  found = load(train="small", general=path, no_target="skip")
  assert found.general.examples == 1 and found.report["general"]["skipped"] == {"no_target": 1}


STREAM = {"train": "train", "stream": 8, "max_length": 8}
SPOKEN = "{% for m in messages %}c1 {{ m.content }} </s> {% endfor %}"
MISTAKES = [
  ({"train": "train", "turns": "lats"}, "data.turns is 'lats' .* did you mean 'last'"),
  ({"train": "train", "malformed": "drop"}, "data.malformed is 'drop' .*, expected 'error'"),
  ({"train": "train", "no_target": "skpi"}, "data.no_target is 'skpi' .* did you mean 'skip'"),
  ({"train": "train", "buckets": 0}, "data.buckets is 0 .*, expected at least 1"),
  ({"train": "train", "limit": 0}, "data.limit is 0 .*, expected at least 1"),
  ({"train": "train", "stream": 0}, "data.stream is 0 .*, expected at least 1"),
  ({"train": "train", "cap": 0}, "data.cap is 0 .*, expected at least 1"),
  ({"train": "train", "temperature": 0.0}, "data.temperature is 0.0 .*, expected above 0"),
  ({"train": "train", "mixture": "propotional"}, "data.mixture is .* did you mean 'proportional'"),
  ({"train": "train", "mixture": {"x": -1}}, "data.mixture.x is -1 .*, expected at least 0"),
  ({"train": "train", "mixture_batches": "taks"}, "mixture_batches is .* did you mean 'task'"),
  *(({"train": "train", "test": size}, "data.test is ") for size in (0, -0.1, 1.5, True)),
  ({"tasks": {"x": {"train": "x", "turns": "lats"}}}, "turns is 'lats' .* mean 'last'"),
  ({"tasks": {"mean": {}}}, "a task is called 'mean', expected another name"),
  ({"tasks": {"x": {"overlap": "drop"}}}, "data.tasks.x.overlap belongs to the mixture as a"),
  ({"train": "plain", "resample": True, "too_long": "chunk", "max_length": 8}, "not with too_long"),
  ({"resample": True, "tasks": {"x": {"train": "x", "too_long": "chunk"}}}, "not with too_long"),
  ({"train": "questions", "resample": True, "objective": "qa", "max_length": 8}, "cut into window"),
  (STREAM | {"test": "test"}, "a stream cannot be compared .* 'drop', .* or 'allow'"),
  ({}, "data.train is missing"),
  ({"train": "train", "tasks": "tsk"}, "train.jsonl:1: data.tasks: .* did you mean 'task'"),
  ({"tasks": {}}, "data.tasks is empty"),
  ({"tasks": {"x": "x.jsonl"}}, "data.tasks.x is 'x.jsonl' .*, expected dict"),
  ({"tasks": {"x": {"train": "x", "limit": 0}}}, "data.tasks.x.limit is 0 .*, expected at least 1"),
  ({"tasks": {"x": {"trian": "x"}}}, "unknown config key data.tasks.x.trian; did you mean"),
  ({"tasks": {"x": {"pack": True}}}, "data.tasks.x.pack belongs to the mixture as a whole"),
  ({"train": "train", "temperature": 2.0}, "shares of tasks: give data.tasks"),
  ({"train": "train", "mixture": {"x": 1}}, "shares of tasks: give data.tasks"),
  ({"train": "train", "tasks": "task", "mixture": {"x": 1}}, "no weight for y"),
  ({"train": "chats", "tasks": "messages", "chat_template": SPOKEN}, "tasks: .* a label's name"),
  (STREAM | {"buckets": 2}, "not with data.buckets"),
  (STREAM | {"pack": True, "limit": 3}, "not with data.pack and data.limit"),
  (STREAM | {"tasks": "task"}, "not with data.tasks"),
  (STREAM | {"start": (0,)}, "not with an encoder-decoder"),
  (STREAM | {"objective": "choices"}, "not with objective 'choices'"),
  (STREAM | {"max_length": None}, "data.stream needs data.max_length"),
  (STREAM | {"train": "chats"}, "column 'messages' holds conversations, which data.stream does n"),
  (STREAM | {"validation": 3}, "data.validation is 3, .* be drawn from a stream"),
  ({"train": "train", "test": "none"}, "none.jsonl holds no rows"),
  ({"train": "train", "pack": True, "resample": True}, "data.pack fills rows once"),
  ({"train": "labels", "objective": "classify", "pack": True}, "data.pack is for objective 'sft'"),
  ({"train": "labels", "objective": "classify", "general": "plain"}, "is for language models"),
  ({"train": "labels", "objective": "classify", "template": "{{ text }}"}, "are for text"),
  ({"train": "labels", "objective": "classify", "test": "maybe"}, "maybe.tsv:2: the label 'maybe'"),
  ({"train": "maybe", "objective": "classify"}, "only one label, 'maybe'"),
  ({"train": "maybe", "objective": "sft", "validation": 1}, "columns|less than the 1 examples"),
]  # fmt: skip


BEYOND = [  # of small.tokenizer's words, a0 to e9 have the ids 6 to 55
  ({"train": "train"}, "train.jsonl:1: the token 'c0' has the id 26, and the .* 26 t"),
  ({"train": "train", "stream": 4, "max_length": 12}, "train.jsonl:1: the token 'c0'"),
  ({"train": "train", "tasks": "task", "pack": True}, "train.jsonl:1: the token 'c0'"),
  ({"train": "train", "start": (0,)}, "train.jsonl:1: the token 'c0'"),
  ({"train": "labels", "objective": "classify"}, "labels.tsv:2: the token 'c0'"),
  ({"train": "small", "general": "plain"}, "plain.jsonl:1: the token 'c4' has the id 30"),
  ({"train": "small", "test": "train"}, "train.jsonl:1: the token 'c0'"),
  ({"train": "small", "objective": "choices", "template": "{{ prompt }}", "answer": "completion",
    "choices": ["a1", "c9"]}, "small.jsonl:1: the token 'c9' has the id 35"),
  ({"train": "chats", "chat_template": SPOKEN},
   "chats.jsonl:1: the token 'c1'"),
]  # fmt: skip


@pytest.mark.parametrize(("options", "says"), BEYOND)
def test_every_token_has_an_embedding(load, options, says):
  with pytest.raises(UserError, match=says):
    made = load(vocabulary=26, **options)
    data.batch(made.train, 0, 0, 2)
  data.batch(load(vocabulary=56, **options).train, 0, 0, 2)


def test_the_model_says_how_many_embeddings_there_are(files, tmp_path, llama):
  path = folders.base(tmp_path, "llama")
  given = {
    "architecture": tiny.ARCHITECTURES["llama"] | {"vocab_size": 20},
    "tokenizer": path,
  }
  full = config.complete({"model": given, "data": {"train": files["train"]}})
  with pytest.raises(UserError, match="the model has embeddings for 20 tokens"):
    trial.load_data(full)
  tokenize = trial.tokenizing(llama._replace(tokenizer=folders.tokenizer("llama")))
  assert tokenize is not None
  assert tokenize("a0 e9") == [6, 55]
  larger = folders.tokenizer("llama")
  larger.add_tokens([f"new{n}" for n in range(6)])
  tokenize = trial.tokenizing(llama._replace(tokenizer=larger))
  assert tokenize is not None
  with pytest.raises(UserError, match="the text 'a0 new5': the token 'new5' has the id 61"):
    tokenize("a0 new5")


@pytest.mark.parametrize(("options", "says"), MISTAKES)
def test_mistakes(load, options, says):
  with pytest.raises(UserError, match=says) as error:
    load(**options)
  assert "\n" not in str(error.value)


def test_the_options_of_a_task_have_types():
  full = {"model": {"path": "x"}, "data": {"tasks": {"a": {"train": "x", "limit": "many"}}}}
  with pytest.raises(UserError, match="data.tasks.a.limit is 'many'"):
    config.complete(full)


def test_trials_of_one_program_need_the_same_labels(load):
  two = load("classify", train="labels")
  three = load("classify", train="labels", labels=("maybe", "no", "yes"))
  with pytest.raises(
    UserError, match="different labels, no, yes and maybe, no, yes: set data.labels"
  ):
    data.align([two, three])
  pairs = load("classify", family="bert", train="labels", rename={"pair": "label"})
  with pytest.raises(UserError, match="of one text and of pairs"):
    data.align([load("classify", family="bert", train="labels"), pairs])
  first, second = data.align([two, load("classify", train="labels", only={"label": ["no", "yes"]})])
  np.testing.assert_array_equal(first.train.arrays["tokens"], second.train.arrays["tokens"])
