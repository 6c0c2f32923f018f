"""What tools/launch.py does on each machine, and how machines talk. Without OneFlow."""
