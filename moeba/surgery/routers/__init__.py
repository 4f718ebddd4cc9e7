"""Routers of models that have just changed: how they start, what form they take, and whether copies stay together."""
