"""Experts out of dense feed-forwards, dense feed-forwards out of experts, and what single experts and neurons do."""
