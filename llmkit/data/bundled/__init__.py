"""Data that is on every machine: the handbook, and the documentation of the Python that runs."""
