"""Estimate the position over a sequence of answers with a discrete Bayes filter."""
