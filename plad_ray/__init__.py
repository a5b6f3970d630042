"""plad_ray: preference-based distillation of language models (PLaD, arXiv 2406.02886) on Ray."""

__version__ = "0.1.0"
