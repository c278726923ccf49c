"""`python -m umd_edge` is the `umd-edge` command."""

from umd_edge._cli import main

if __name__ == "__main__":
    main()
