"""What training leaves in a model folder beside the Trainer's own files."""

STATISTICS_FILE = "router_statistics.json"
