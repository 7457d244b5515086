"""Calibration results that change answers: acceptance threshold, cascade, tuned setting."""
