"""What `moeba demo` is made of."""
