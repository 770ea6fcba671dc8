"""The same run on several machines: pieces of passes, and the engine that deals them out."""
