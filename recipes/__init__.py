"""Recipes: programs that train a model with the package, run from a checkout."""
