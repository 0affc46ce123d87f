"""A server that speaks the APIs people have clients for. Knows HTTP; knows no torch."""
