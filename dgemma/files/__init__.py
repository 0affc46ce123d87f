"""Reads and writes single files with care: bounded, regular, whole or not at all.

Knows the file system. Knows nothing about what the files hold, but for the syntax of JSON.
"""
