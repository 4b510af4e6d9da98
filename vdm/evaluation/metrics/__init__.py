"""One metric a file. Each adds up over batches and ranks and gives named numbers."""
