"""What the files of a folder say, as facts."""
