"""llmkit: from a raw text to language models and classifiers that a person owns, deploys, watches and retrains."""

__version__ = "0.1.0"
