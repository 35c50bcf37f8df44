"""ddcnn: model-parallel training of image classifiers by domain decomposition."""

__version__ = "0.1.0"
