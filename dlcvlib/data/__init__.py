"""Image sources: embedded (drawn or shipped), folders, and torchvision."""
