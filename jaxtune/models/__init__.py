"""Language models as plain flax.linen modules, and the folders they are loaded from."""
