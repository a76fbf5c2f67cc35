"""``python -m specrouter_local``: the ``specrouter`` command."""

from specrouter_local.scripts import main

main()
