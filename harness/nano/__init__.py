"""Small worlds and small models: painted scenes, and a recipe that trains a ViT on any pictures."""
