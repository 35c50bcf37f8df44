"""Reports, made from the files of finished runs alone: ``run_report``, ``seeds_report``, ``verdict``, ``analysis`` (reliance,
calibration), ``descriptions`` (of figures), ``metrics``, ``intervals``, ``pages``, ``follow`` (a run that goes on), ``figures/`` (arrays
in, a figure out).

No training, no networks, no torch; tables are returned or shown on a console that the caller gives.
"""
