"""Faults found by using the library as its users do, one file per fault.

The number in a file's name is that of the fault in issue 9.
"""
