"""The completions API: what it takes, what it does, what it answers."""
