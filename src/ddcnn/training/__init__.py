"""Training of any network: ``loop`` (the one loop and its callbacks), ``recipe`` (batches, optimizer, learning rate), ``averaging`` (of
parameters), ``data_parallel`` (DistributedDataParallel), ``precision`` (device, memory format), ``resume`` (checkpoints of a training).

It knows samples and networks, but neither subdomains nor methods.
"""
