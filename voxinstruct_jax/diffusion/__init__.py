"""Diffusion and flow models: paths, objectives, times, guidance, solvers. One network interface, every system a row."""
