"""Training stages of Dysen: the embedded language model, and the policy that chooses demonstrations."""
