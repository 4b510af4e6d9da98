"""Gold dynamic scene graphs from video: who is where in each frame, merged over time into graphs of ticks."""
