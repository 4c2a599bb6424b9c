"""The embedded Gearman job server, and the starting of job servers.

What lives here: a small Gearman server for local clusters (`python -m gearmap.jobserver`) and `process`, which starts
it or gearmand as a child process. What must not: gearman3, pickles, anything of gearmap above layer 2.

Rule 1: importing this package loads nothing; in particular no asyncio, which only the server process needs.
Rule 2: the protocol state machine is pure; sockets and clocks live in `shell` alone.
"""
