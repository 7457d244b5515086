"""What a bundle or map learns from the user's own pictures after export.

Empty as yet: INT8 ranges, the cascade head and the accept threshold belong here.
"""
