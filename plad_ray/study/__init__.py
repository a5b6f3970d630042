"""Studies: the tables and figures of the paper, and of questions that it left open, by one command each."""
