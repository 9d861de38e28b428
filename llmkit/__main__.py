"""`python -m llmkit` is the `llmkit` command."""

from llmkit.cli import main

main()
