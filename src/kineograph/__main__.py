"""Entry point of `python -m kineograph`."""

from kineograph.cli import main

if __name__ == "__main__":
    main()
