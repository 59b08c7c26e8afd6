"""Random jobs and faults against whole workers, for as long as you like.

    make campaign SEED=7 JOBS=2000 FAULTS=600 MINUTES=120
    make soak MINUTES=120

Each step draws some jobs and some faults of the catalogue from the seed and its own number, so one
step can be run again alone. After each step everything must be as it should: see `judge`.
docs/internals/hard-to-kill.md says what is drawn, what is checked, and how to replay a violation.
"""
