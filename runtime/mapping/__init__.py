"""Make maps: choose keyframes, encode and store them, close loops."""
