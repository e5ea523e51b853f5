"""What is minimised: each objective returns a sum and a weight, never a mean."""
