"""Weights put together: a base and its adapter."""
