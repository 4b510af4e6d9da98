"""The embedded language model: a small decoder, trained in this project, that learns new verbs from its demonstrations."""
