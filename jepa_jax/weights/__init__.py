"""Weights in every format, checked strictly: official .pt, Hugging Face folders, our folders and our runs."""
