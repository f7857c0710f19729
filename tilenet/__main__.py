"""``python -m tilenet`` is the command."""

from tilenet.cli import main

main()
