"""Training: data, noise, objective, optimiser, loop; `recipes/` joins them."""
