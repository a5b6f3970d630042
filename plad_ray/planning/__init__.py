"""What an experiment will need, before it is paid for: memory, tokens, time and cost of each stage (``plad plan``)."""
