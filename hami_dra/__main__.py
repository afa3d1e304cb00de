"""``python -m hami_dra`` is the command ``hami-dra``."""

from hami_dra.cli import main

if __name__ == "__main__":
    main()
