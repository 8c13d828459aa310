"""Let `python -m nvmtool` be the command."""

from .cli import main

main()
