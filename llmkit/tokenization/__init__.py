"""Byte-level BPE, the chat template, and how many bytes a token stands for."""
