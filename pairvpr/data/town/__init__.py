"""A made-up town for training without real pictures: endless streets, drawn by code in any weather."""

from pairvpr.data.town.dataset import Town
from pairvpr.data.town.writing import write_evaluation, write_town

__all__ = ["Town", "write_evaluation", "write_town"]
