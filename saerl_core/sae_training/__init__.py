"""Training an SAE on the reader's residual stream: corpus → activations → sae-lens's trainer → figures."""
