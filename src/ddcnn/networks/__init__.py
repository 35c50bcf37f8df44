"""Local CNNs, the global CNN and the DNN; the width rule; names. Import from the modules: ``shape`` needs no torch."""
