"""What git asks of manifests: a diff driver, a merge driver, a hook, and their set-up."""
