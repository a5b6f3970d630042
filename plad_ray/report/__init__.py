"""What came out: one self-contained HTML page, its Markdown twin and the table at the end of ``plad run``."""
