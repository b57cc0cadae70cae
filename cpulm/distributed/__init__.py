"""Training over several processes and hosts: torch.distributed behind the face that training uses."""
