"""Networks: local CNNs, the global CNN, the DNN, and the width rule. No training, no data, no files; imports only ``errors``.

``registry`` makes networks by name, out of ``vgg``, ``resnet``, ``torchvision_models`` and ``custom`` (the user's own); ``dense`` is
the DNN, ``operations`` counts. ``shape`` and ``registry`` can be imported without torch.
"""
