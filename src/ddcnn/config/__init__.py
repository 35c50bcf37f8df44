"""Settings: ``settings`` and ``training_settings`` (every option, its group and default), ``types``, ``methods`` (the table of methods),
``splitting`` (image or width), ``load`` (TOML file and command line -> settings), ``parser`` (argparse).

Pure values: no file but the TOML file is read, and nothing here knows MPI or torch.
"""
