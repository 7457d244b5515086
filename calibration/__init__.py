"""Calibrate a bundle on the user's own pictures, without torch.

Fits the cascade and the acceptance threshold, tunes the runtime setting, chooses the pictures for INT8 ranges, and
judges INT8 graphs.
"""
