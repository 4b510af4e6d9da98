"""How the work of one model is shared by several processes: who holds which weights, and how the processes are started."""
