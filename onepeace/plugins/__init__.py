"""The library inside other programs, one file each; every file says how it is used there."""
