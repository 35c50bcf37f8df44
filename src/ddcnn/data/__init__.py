"""Data: from a source (``sources``) to a partitioned HDF5 file (``partition``, ``partitioned_set``) to batches on a device (``batches``,
``augmentation``).

``prediction_source`` opens images to be classified, as ``image_spec`` of a run says; ``set_parts`` and ``set_writer`` are the files of a
set, ``statistics`` its mean, standard deviation and digest; ``stand_in`` and ``partition_trial`` are for dry runs. No networks that are
trained, no settings of commands, no report.
"""
