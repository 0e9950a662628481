"""The fused LM head: losses and comparisons without whole logits."""
