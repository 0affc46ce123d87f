"""OpenAI's old API for plain text: schema, route, reply."""
