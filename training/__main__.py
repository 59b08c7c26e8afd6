"""`python -m training`, see `training.recipe`.

A module of its own: processes find functions by their module's name, which `__main__` is not.
"""

from training.recipe import main

if __name__ == "__main__":
    main()
