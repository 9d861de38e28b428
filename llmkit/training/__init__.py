"""What transformers' Trainer lacks: Muon, a time budget, bits per byte, checkpoints that are checked."""
