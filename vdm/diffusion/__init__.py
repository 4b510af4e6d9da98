"""What a latent becomes under noise, what the network predicts of it, and what it is told while sampling."""
