"""ROUGE, win rates with intervals, lift over the initial student, pooling over seeds."""
