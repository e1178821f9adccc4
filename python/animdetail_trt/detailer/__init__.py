"""The detailer: plan, paint and paste each segment of a clip."""
