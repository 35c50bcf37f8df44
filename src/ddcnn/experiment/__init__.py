"""A run: ``plan`` checks and partitions, ``problem`` is what is to be solved, ``run`` goes through the methods, ``two_step`` and
``end_to_end`` train, ``recorder`` collects, ``results`` computes results.json. ``context`` is what the steps share; ``api`` is the same
for scripts and notebooks. ``dry_run`` tells what a run would take, from a ``trial`` and an ``estimate``.

This package may print and start anything below; it holds no mathematics (see ``method``) and no file formats (see ``io``).
"""
