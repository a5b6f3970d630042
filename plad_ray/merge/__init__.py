"""Weights put together: a base and its adapter, a distilled student and its start."""
