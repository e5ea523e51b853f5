"""What several tests make and check: tiny models, folders, runs and readers."""
