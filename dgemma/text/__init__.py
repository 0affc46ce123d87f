"""Text: tokens, chat prompts, and what a model's ids mean (thought, tool calls, answer)."""
