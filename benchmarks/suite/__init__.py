"""`make bench`: measures every row of docs/benchmarks.md, each beside a rival or a limit."""
