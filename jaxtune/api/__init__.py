"""What a user does, one file for each action; the command line and `import jaxtune` offer these."""
