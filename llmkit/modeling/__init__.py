"""Sizes of models from one dial, and forecasts of parameters, memory and time."""
