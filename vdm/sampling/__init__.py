"""From a run and prompts to video files: what is asked for, the networks that make it, and the files."""
