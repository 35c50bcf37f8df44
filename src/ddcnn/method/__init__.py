"""The papers, to be read beside them: ``local`` (local CNNs), ``dnn_samples`` (holdout, out-of-fold), ``aggregate`` (vote, average,
CNN-DNN), ``interface`` (what travels, and its adjoint), ``coherent`` (coherent training and transfer), ``width`` (decomposition in
width), ``factory`` (settings and data -> networks), ``work`` (counts of what the phases cost).

Only ``factory``, ``width`` and ``work`` know the options; nothing is printed, recorded or written.
"""
