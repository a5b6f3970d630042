"""Preference pairs from responses, and what they look like before training starts."""
