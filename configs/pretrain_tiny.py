"""Pretrains the bundled base: a Llama of 3.2 M parameters, from scratch, by the `full` method.

python experiments/pretrain_tiny/prepare.py --corpus CORPUS --out runs/pretrain_tiny
jaxtune train --config configs/pretrain_tiny.py --workdir runs/pretrain_tiny/run
jaxtune export --workdir runs/pretrain_tiny/run --format merged --dtype bfloat16 --out FOLDER
"""

from ml_collections import ConfigDict


def get_config(folder: str = "runs/pretrain_tiny") -> ConfigDict:
  config = ConfigDict()
  config.seed = 0
  config.model = ConfigDict(
    {
      "architecture": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 4096,
        "hidden_size": 192,
        "intermediate_size": 512,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 32,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 1,
      },
      "tokenizer": "jaxtune/assets/tiny",
      "remat": True,
    }
  )
  config.data = ConfigDict(
    {
      "train": f"{folder}/train.jsonl",
      "validation": f"{folder}/validation.jsonl",
      "max_length": 128,
      "too_long": "chunk",
      "overlap": "allow",
    }
  )
  config.method = ConfigDict({"name": "full"})
  config.optim = ConfigDict(
    {
      "learning_rate": 2e-3,
      "schedule": "cosine",
      "warmup": 200,
      "weight_decay": 0.1,
      "b2": 0.95,
    }
  )
  config.train = ConfigDict({"steps": 4000, "batch_size": 16, "log_every": 50, "eval_every": 500})
  return config
