"""What flows through a recipe: data, models, reports."""

from trainlore.nouns.data import Batch, Data
from trainlore.nouns.model import Model
from trainlore.nouns.report import Measured, Report

__all__ = ["Batch", "Data", "Measured", "Model", "Report"]
