"""Run a bundle's graphs: one protocol, and one module for each inference library."""
