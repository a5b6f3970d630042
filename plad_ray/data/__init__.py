"""From any source to prompt rows: reading, formats, splits, identity, and imports of finished text."""
