"""Experiments: sweeps over methods and seeds behind the claims. Each is a command of its own.

python -m course_utils.experiments.categories --seeds 3   full fine-tuning against five PEFTs
python -m course_utils.experiments.styles --seeds 3       what two composed style adapters give

sweep    rows that are kept as they come and continued after an interruption, and tables
"""
