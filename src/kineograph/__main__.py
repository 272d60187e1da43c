"""`python -m kineograph` is `kineograph`."""

from kineograph.cli import main

if __name__ == "__main__":
    main()
