"""The whole mesh on one machine, and the ``specrouter`` command."""
