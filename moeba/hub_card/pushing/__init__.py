"""Carrying a folder to the Hub: which files, one commit, and what its errors mean."""
