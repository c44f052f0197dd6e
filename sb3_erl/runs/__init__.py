"""What a run leaves on disk and how it is continued: save, load, resume, checkpoints, replay buffer files."""
