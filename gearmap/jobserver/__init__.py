"""The embedded Gearman job server, and the starting of job servers.

What lives here: a small Gearman server for local clusters (`python -m gearmap.jobserver`) and `process`, which starts
it or gearmand as a child process. What must not: gearman3, pickles, anything of gearmap above layer 2.

Rule 1: importing this package loads nothing; asyncio is not loaded by the server either.
Rule 2: the protocol state machine is pure; sockets and clocks live in `shell`, `connection` and `loop` alone.
"""
