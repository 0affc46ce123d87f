"""Training: data, noise, objective, optimiser, loop; recipes are short files that join them."""
