"""The sections of a card in words and tables, one file a subject."""
