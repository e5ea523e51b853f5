"""Contains one file for each model family, named after the `model_type` of its config.json."""
