"""Number formats of packed weights, and the modules that compute with them."""
