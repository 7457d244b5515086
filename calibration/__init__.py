"""What a bundle or map learns from the user's own pictures after export.

So far the pictures INT8 ranges come from, and the gate INT8 graphs must pass; the cascade head and the accept
threshold belong here too.
"""
