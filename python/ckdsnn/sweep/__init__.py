"""`ckdsnn sweep`: a grid of cells and seeds, each an ordinary run, and one table of what came out.

See docs/sweeps.md.
"""
