"""The recipe of the demo model: drawn scenes, three tiny networks, and a measurement.

`python -m training` trains everything from scratch; see docs/demo-model.md.
"""
