"""nano, the bundled model: its tokenizer, its mix of tasks, its run."""
