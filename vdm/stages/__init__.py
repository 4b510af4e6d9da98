"""One file per training stage. A stage says what its losses are; how a step is taken is written once, in base."""
