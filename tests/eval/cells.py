"""One cell, computed as a worker computes it."""

from lo_framework.eval.running.pool import Workshop


def run_cell(cell, task, optimizer, on_step=lambda n: None):
    workshop = Workshop(tasks={cell.task: task}, optimizers={cell.optimizer: optimizer})
    return workshop.compute(cell, on_step)
