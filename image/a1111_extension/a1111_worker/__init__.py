"""What the worker changes in A1111 v1.9.3: it draws faster on a GPU, reads newer pickle files, and
reports errors of extensions.

Our own code, under the MIT license; nothing of A1111 is copied. It changes A1111 only while it
runs, by replacing functions of its modules.
"""
