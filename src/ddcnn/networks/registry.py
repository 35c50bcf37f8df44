"""Networks by name. To add one: write a module with a factory ``(shape, width, divisor, features=None) -> Module``, and name it here.

The module maps images to logits, and has ``features``, images to its last hidden layer, and ``classifier``, from there to logits.
"""

from ddcnn.networks.vgg import vgg3, vgg9

NETWORKS = {"vgg3": vgg3, "vgg9": vgg9}
