"""From a plan to a published folder: sources, models that stream from disk, calibration text, and the measured gap."""
