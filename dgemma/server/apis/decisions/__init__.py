"""The decisions API: what it takes, what it does, what it answers."""
