"""Buckets of S3 and of services like it: one client for all of them, with errors of our own."""
