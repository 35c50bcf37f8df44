"""Finished runs on new images: ``trained_run`` (opens a run), ``network`` (one ``torch.nn.Module`` of it), ``predict``, ``writers``
(CSV and HDF5), ``export``.

Nothing is trained here, and a run's folder is never changed.
"""
