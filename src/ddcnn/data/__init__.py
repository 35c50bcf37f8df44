"""Images on their way to a rank: sources, the partitioned HDF5 store, and batches on the device."""
