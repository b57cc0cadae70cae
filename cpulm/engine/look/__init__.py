"""A trained model looked into: what it finds hard, where it attends, what its weights have become."""
