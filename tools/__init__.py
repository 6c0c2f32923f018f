"""What a person starts: training, prediction, and the helpers around them."""
