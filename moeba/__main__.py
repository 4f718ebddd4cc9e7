"""`python -m moeba` is the `moeba` command."""

from moeba_command import main

if __name__ == "__main__":
    main()
