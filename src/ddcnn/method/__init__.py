"""The papers' steps: local training (local), then one decision out of the local classifications (aggregate)."""
