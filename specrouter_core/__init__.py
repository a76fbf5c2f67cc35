"""The pure part of SpecRouter: what a token is, and who may call it committed.

Nothing here does I/O, reads a clock or starts a thread; numpy is the only dependency.
"""
