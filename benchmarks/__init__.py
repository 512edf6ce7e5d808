"""Speed and memory of the framework beside other ways to do the same; run by hand, never by the
tests.
"""
