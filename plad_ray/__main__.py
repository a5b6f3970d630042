"""``python -m plad_ray``: the same as the ``plad`` command."""

from plad_ray.cli import main

main()
