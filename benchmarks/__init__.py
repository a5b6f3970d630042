"""What the README's speed claims run: ``python -m benchmarks``."""
