"""What a model is worth: one module per kind of task, and the report a person reads."""
