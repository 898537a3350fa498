"""The control plane: launching, observing, healing, maintaining a cluster from outside."""
