"""What a bundle learns from the user's own pictures after export, without labels and without torch.

The cascade, the pictures INT8 ranges come from, and the gate that INT8 graphs must pass.
"""
