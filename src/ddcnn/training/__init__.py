"""Training of any network: ``loop`` (the one loop and its callbacks), ``state``, ``step`` (the gradient of a step), ``recipe`` (batches,
optimizer, learning rate), ``averaging`` (of parameters), ``data_parallel`` (DistributedDataParallel), ``precision`` (memory format, too),
``resume`` (checkpoints of a training).

It knows samples and networks, but neither subdomains nor methods.
"""
