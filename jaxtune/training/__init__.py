"""Contains the pure training step, the loop around it, its optimizer and its checkpoints."""
