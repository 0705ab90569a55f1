"""Tools that report on users' calls: explain, tune, compare, gradient_flow, environment."""
