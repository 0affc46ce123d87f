"""The native API: a canvas in segments: schema, route, reply."""
