"""RL-tuned in-context learning (Dysen-VDM): which demonstrations a planner is shown, and what its answers are worth."""
