"""What requests and replies look like, one module per API. Knows fields; knows no route."""
