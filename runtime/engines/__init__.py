"""Run a bundle's graphs: one protocol, and a module for each inference library."""
