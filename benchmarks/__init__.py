"""How fast flowbook is, beside the least plain torch that does the same job.

make bench                     on a CPU, with budgets (benchmarks/speed.py)
make gpu STAGE=speed           on a GPU, recorded in results/ (benchmarks/gpu.py)
make record STAGE=moons        on a CPU, what is too long for a page (benchmarks/cpu.py)
"""
