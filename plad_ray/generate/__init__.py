"""Requests to responses: one Ray Data execution over one pool of engine actors for each base model."""
