"""What frameworks call: a file for each framework, which is imported only when it is asked for.

``from mlstate.integrations.transformers import SaveStates`` needs transformers; this package alone
imports no framework, and no torch.
"""
