"""Sensitivity metrics, one a file; ``base`` says what they are, ``objectives`` what the loss is, ``gradients`` differentiates."""
