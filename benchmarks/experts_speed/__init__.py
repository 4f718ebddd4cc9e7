"""Parts of `benchmarks/fast_experts.py`: models, floors, works, and the report."""
