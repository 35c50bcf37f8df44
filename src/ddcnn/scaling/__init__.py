"""Scaling studies: started (study, slurm), collected (points, collect), and extended past this machine (performance_model, prediction)."""
