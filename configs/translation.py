r"""English to German by an encoder-decoder from scratch: Multi30k captions, test_2016_flickr.

  python experiments/translation/tokenizer.py --train DATA/train.jsonl.gz \
    --out runs/translation/tokenizer
  jaxtune sweep --config configs/translation.py:DATA --workdir runs/translation/sweep

DATA is a folder with Multi30k's train.jsonl.gz, val.jsonl.gz and test_2016_flickr.jsonl.gz (columns
en, de). No pretrained encoder-decoder is involved: a T5 v1.1 of random weights is trained by the
`full` method. Cost and scores: experiments/translation/README.md.

Cost and score, written by experiments/keep.py:
translation: 1 trial, 26 minutes one after another; test loss 3.158 [3.099, 3.224] with full,
  8.309 untuned.
"""

from ml_collections import ConfigDict


def get_config(folder: str = "../shared/data/multi30k") -> ConfigDict:
  config = ConfigDict()
  config.model = ConfigDict(
    {
      "architecture": {
        "model_type": "t5",
        "architectures": ["T5ForConditionalGeneration"],
        "vocab_size": 4000,
        "d_model": 128,
        "d_kv": 32,
        "d_ff": 256,
        "num_heads": 4,
        "num_layers": 3,
        "feed_forward_proj": "gated-gelu",
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": 1,
        "decoder_start_token_id": 0,
      },
      "tokenizer": "runs/translation/tokenizer",
      "remat": True,
    }
  )
  config.data = ConfigDict(
    {
      "train": f"{folder}/train.jsonl.gz",
      "validation": f"{folder}/val.jsonl.gz",
      "test": f"{folder}/test_2016_flickr.jsonl.gz",
      "template": "{{ en }}",
      "answer": "de",
      "buckets": 4,
      "overlap": "drop",
    }
  )
  config.objective = ConfigDict({"name": "sft", "label_smoothing": 0.1})
  config.method = ConfigDict({"name": "full"})
  config.optim = ConfigDict(
    {"learning_rate": 2e-3, "schedule": "linear", "warmup": 200, "b2": 0.98}
  )
  config.train = ConfigDict({"steps": 2000, "batch_size": 32, "eval_every": 400})
  config.evaluate = ConfigDict(
    {"generate": True, "metrics": ("bleu", "chrf"), "max_new_tokens": 48, "batch_size": 100}
  )
  config.sweep = ({"seed": [0]},)
  return config
