"""Mercury's API for code editors: schema, route, reply."""
