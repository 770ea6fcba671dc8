"""What is said of every pixel of a few test pictures, drawn beside the truth."""
