"""Scaling studies: ``study`` and ``slurm`` start runs, ``measurements`` and ``collect`` compare them, ``performance_model``,
``workload`` and ``extrapolation`` predict more ranks, ``machine_benchmark`` measures a network; ``commands`` is their command line.

A study starts ddcnn as its users do and reads the results: it imports neither ``experiment`` nor ``inference``.
"""
