"""One file for each fine-tuning method; its function `method` makes the `peft.Method`.

An option outside the limits that its `Args` entry states raises UserError: in `method`, or in the
method's `init` where the limit depends on the model.
"""
