"""Episodes: jobs, who acts, exploration, and the one loop that steps environments."""
