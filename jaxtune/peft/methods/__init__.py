"""One file for each fine-tuning method; its function `method` makes the `peft.Method`."""
