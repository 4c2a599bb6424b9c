"""Pure decisions: values in, values out.

Law of this folder: no socket, thread, clock, random number or pickle. `now` (monotonic seconds) is an argument, and
everything that is drawn at random is drawn above and handed in. An hour-long timeout is tested in a millisecond.
"""
