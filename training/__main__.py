"""`python -m training`, see `training.recipe`.

A separate module, because other processes cannot import functions from `__main__`.
"""

from training.recipe import main

if __name__ == "__main__":
    main()
