"""Calibration results that change answers: acceptance threshold, cascade and tuned setting."""
