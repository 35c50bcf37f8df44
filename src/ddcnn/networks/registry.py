"""Networks by name. To add one: write a module with a factory ``(shape, width, divisor) -> Module``, and name it here."""

from ddcnn.networks.vgg import vgg3, vgg9

NETWORKS = {"vgg3": vgg3, "vgg9": vgg9}
