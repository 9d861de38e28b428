"""Loading a model folder and getting text out of it."""
