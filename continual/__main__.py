"""``python -m continual`` is the command line, also where its script is not on the path."""

from continual.cli import main

if __name__ == "__main__":
    main(prog_name="continual")
