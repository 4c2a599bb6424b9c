"""Threads, clocks and processes: they carry out what `gearmap.core` decides."""
