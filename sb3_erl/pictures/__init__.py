"""Pictures of runs: what a population does, generation by generation, and learning curves. Nothing here changes a run."""
