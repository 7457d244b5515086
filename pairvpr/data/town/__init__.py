"""A made-up town: streets without end, drawn by code under any weather, for training without anybody's pictures."""

from pairvpr.data.town.dataset import Town
from pairvpr.data.town.writing import write_evaluation, write_town

__all__ = ["Town", "write_evaluation", "write_town"]
