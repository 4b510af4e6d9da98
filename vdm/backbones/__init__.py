"""Denoisers: what every backbone offers (base), the factorised 3D U-Net, and its key map from and to ModelScope."""
