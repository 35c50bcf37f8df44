"""Local CNNs, the global CNN and the DNN; the width rule; names.

To add a network: write a module with a class that takes ``Shape`` and ``width``, and give it a name in ``NETWORKS``.
"""

from ddcnn.networks.shape import Shape, scaled_width
from ddcnn.networks.vgg import VGG, vgg3, vgg9

NETWORKS = {"vgg3": vgg3, "vgg9": vgg9}

__all__ = ["NETWORKS", "VGG", "Shape", "scaled_width", "vgg3", "vgg9"]
