"""Models, health, metrics, and the tokenizer over HTTP: schema, route."""
