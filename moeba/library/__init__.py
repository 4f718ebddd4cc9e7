"""The one room for what moves in other libraries: private, undocumented and release-dependent names.

Nothing else in Moeba imports such a name; a test asserts it. Each name says what it hides, on which release that
changed, and when it can go.
"""
