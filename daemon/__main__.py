"""`python -m sigd.daemon` is `sigd`."""

from sigd.daemon.cli import main

if __name__ == "__main__":
    main()
