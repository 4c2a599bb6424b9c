"""Progress for people: sinks for `ProgressSnapshot`.

Law of the folder: choosing a sink is a pure function of what is known about the terminal; showing never raises into
a run.
"""
