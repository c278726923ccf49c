"""Experiments: grids of runs, baselines, paired statistics and the page of results.

A grid compares arms (chains of training stages) on the same records with the same seeds. Nothing
here trains in its own way: every stage is a call of `umd-edge-train`.
"""
