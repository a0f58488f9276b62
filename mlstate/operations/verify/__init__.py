"""`verify`: every byte is read; what is wrong is said, or repaired."""
