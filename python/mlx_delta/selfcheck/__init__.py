"""``mlx-delta selfcheck``: what only a machine with a GPU can tell, run by its owner once and sent back.

``report`` runs the stages, each in a process of its own, and writes one file; ``stages`` lists them.
"""
