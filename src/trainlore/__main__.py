"""`python -m trainlore` is the command `trainlore`."""

from trainlore.cli import main

main()
