"""What conversion learns by running the model on text: the importance of every matrix's inputs, and how much the
model's predictions change with every matrix's width.

    texts -> chunks of tokens -> importance (``imatrix``) | sensitivity (recipe ``auto``)
"""
