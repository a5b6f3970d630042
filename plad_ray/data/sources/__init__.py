"""One file a source: each turns the records of its format into prompt rows."""
