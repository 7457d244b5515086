"""What a bundle learns from the user's own pictures after export, without labels and without torch."""
