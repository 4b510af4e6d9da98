"""Dysen: a caption becomes an action plan, the plan a dynamic scene graph, and a language model imagines the details."""
