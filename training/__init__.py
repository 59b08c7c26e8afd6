"""How the demo model is made: drawn scenes, three tiny networks, and a measurement of both.

`python -m training` trains everything from nothing; see docs/demo-model.md.
"""
