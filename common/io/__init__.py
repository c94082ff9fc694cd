"""Files as they lie on a disk: written whole or not at all, and read without trust."""
