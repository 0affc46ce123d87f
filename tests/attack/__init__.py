"""`make attack`: abuse of a server on this machine, and what its other users notice of it."""
