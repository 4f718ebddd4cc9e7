"""Rows that several families have, one file for each part or shape of architecture. No family imports another."""
