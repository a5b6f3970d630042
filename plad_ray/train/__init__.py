"""Training: Ray Train launches it, DeepSpeed shards it, objectives say what it minimises."""
