"""Text encoders: captions in, one vector per token out. Every file is one family."""
