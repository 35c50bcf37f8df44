"""Ranks and processes: ``world`` (collectives; the only module that imports mpi4py), ``messages``, ``groups`` (who trains what),
``process_group`` (torch.distributed), ``launcher``, ``timeline``, ``memory``, ``seeding``, ``logs``; and what keeps a job in order:
``heartbeat``, ``stall_watchdog``, ``abort``, ``stop_requests``, ``allocator``, ``environment``, ``devices``.

Nothing here knows images, networks or settings.
"""
