"""`python -m hopline.cli`: the command without its console script."""

from hopline.cli import main

main()
