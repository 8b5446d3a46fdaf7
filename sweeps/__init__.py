"""Many runs: designs, plans, dispatch and the ``isoflop`` command."""
