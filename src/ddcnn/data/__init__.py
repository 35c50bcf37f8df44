"""Data: from a source (``sources``) to a partitioned HDF5 file (``partition``, ``partitioned_set``) to batches on a device (``batches``).

``prediction_source`` opens images to be classified, ``set_parts`` and ``set_writer`` are the files of a set, ``statistics`` its mean,
standard deviation and digest. No training and no command-line settings: imports only io, config, parallel and rooms below.
"""
