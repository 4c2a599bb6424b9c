"""Gearman connections that never block: gearman3 made fit for today's Python by subclassing.

This folder is the only one that imports `gearman`. Its types, flags and exceptions stay inside: what goes up
are the values of `events` and the errors of `gearmap.errors`. Nothing in gearman3's modules is changed.

Import the submodules; this package itself imports nothing, so that `import gearmap` stays cheap.
"""
