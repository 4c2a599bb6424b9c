"""Bytes <-> values: pickling, framing, sealing, and what an outcome says.

Everything here is pure: no socket, thread, clock or randomness. Keys, ids and expiry are arguments. Opening comes
before unpickling, and only `serializer` and `functions` pickle at all.

========== ===================================================================================
seal       keys from the secret, nonces from counters, one piece sealed or opened
envelope   the sealed message: clear prefix, sealed header, sealed body pieces
framing    several pickles and their buffers in one body, and back without copying
serializer values -> pickle-5 payloads -> values
functions  a function pickled once while what it captures cannot have changed
explain    which part of a value does not pickle, and what to do about it
failure    a task's exception as text and payload, and its rebuilding in the client
outcome    the header and the body of an outcome
pieces     results of short tasks, told of together
jobheader  the header of a job
========== ===================================================================================
"""
