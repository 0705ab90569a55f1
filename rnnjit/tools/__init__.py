"""What tells users about their calls: explain, autotune, compare, gradient_flow, environment."""
