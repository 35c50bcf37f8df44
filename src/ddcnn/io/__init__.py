"""Files: ``run_folder`` (the only place that knows their names), ``results_schema``, ``json_schema``, ``run_reader``, ``metrics_log``,
``details``, ``parameters``, ``checkpoints``, ``tensorboard``; and how they are written: ``atomic``, ``hdf5``, ``lock``, ``progress``.

Nothing is unpickled, and no link is followed out of a run's folder. Images and partitioned sets are in ``data``.
"""
