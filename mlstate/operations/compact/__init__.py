"""Compaction: objects of a store become encoded objects, and plain ones again."""
