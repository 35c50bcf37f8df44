"""Training of any network: ``loop`` (the one loop, its recipe and callbacks), ``data_parallel`` (DistributedDataParallel), ``precision``
(device, precision, memory format), ``resume`` (checkpoints of a training).

It knows samples and networks, but neither subdomains nor methods.
"""
