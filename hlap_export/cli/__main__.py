"""`python -m hlap_export.cli`."""

from hlap_export.cli.program import main

main()
