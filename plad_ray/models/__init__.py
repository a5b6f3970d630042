"""Models and tokenizers: what to load, how to load it, and the one place where text becomes tokens."""
