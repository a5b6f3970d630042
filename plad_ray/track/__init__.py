"""Training curves for those who watch them elsewhere. The curve of record is ``files/metrics.jsonl`` of the artifact."""
