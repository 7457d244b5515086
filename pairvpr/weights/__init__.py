"""The default model: bundles as package data."""
