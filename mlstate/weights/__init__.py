"""Files of weights in the containers that all tools read, and folders of them."""
