"""What a running step costs: time by phase, floating point operations, memory, and which rank the others wait for."""
