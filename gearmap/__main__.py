"""`python -m gearmap`: the same as the command `gearmap`."""

from __future__ import annotations

from gearmap.cli import main

if __name__ == "__main__":
    main()
