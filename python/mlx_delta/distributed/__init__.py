"""One model on several machines, by tensor parallelism over ``mx.distributed``; ``mlx.launch`` starts the ranks.

Every rank runs the same program on the same tokens and holds its share of every matrix (an architecture's ``shares``):
heads of the mixers, columns of the feed-forward, rows of the vocabulary. What mixers and feed-forwards make is summed
over the ranks, twice a layer. All get the same bits of every sum and of the logits, so all choose the same tokens.
"""
