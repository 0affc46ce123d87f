"""What the server and its model are: schema, route."""
