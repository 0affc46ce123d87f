"""OpenAI's chat API: schema, route, reply."""
