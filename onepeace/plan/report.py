"""The plan of a run as text, for the command line."""

from onepeace.cards import CARDS
from onepeace.plan.plan import Plan
from onepeace.plan.time import UTILISATION, step_time


def plan_text(plan: Plan) -> str:
    """The output of ``onepeace train RECIPE --plan``."""
    rows = [*_memory_rows(plan), *_traffic_rows(plan), *_flops_rows(plan), *_time_rows(plan)]
    lines = [_title(plan), f"{plan.parameters:,} parameters, {plan.trained:,} of them trained", ""]
    lines += [f"{name:<40}{value:>12}".rstrip() for name, value in rows]
    if plan.recipe.model.get("heads"):
        lines.append("not counted: losses of the heads")
    return "\n".join(lines)


def _title(plan: Plan) -> str:
    run = plan.recipe.run
    items = ", ".join(f"{plan.recipe.batch_size(source)} {source}" for source in plan.recipe.data.modalities)
    title = f"{items} a step on {plan.processes} {plan.card.name}"
    if run.grad_cache_chunks > 1:
        title += f", computed in {run.grad_cache_chunks} parts"
    title += ", float32" if run.precision == "float32" else ", bfloat16"
    title += f", recompute: {run.recompute}"
    if plan.processes > 1 and run.parallel == "ddp":
        title += ", ddp"
    elif plan.processes > 1:
        kept = ", gathered weights kept" if run.keep_gathered else ""
        title += f", fsdp over {run.shard}{kept}"
    return title


def _memory_rows(plan: Plan) -> list[tuple[str, str]]:
    rows = [("GB at the peak of a process", "")]
    rows += [(f"  {category}", f"{size / 1e9:.2f}") for category, size in sorted(plan.step.memory.items())]
    rows.append((f"  total and a tenth, of {plan.card.memory / 1e9:.0f}", f"{plan.memory / 1e9:.2f}"))
    rows.append(("GB of a checkpoint", f"{plan.step.checkpoint / 1e9:.2f}"))
    return rows


def _traffic_rows(plan: Plan) -> list[tuple[str, str]]:
    """Bytes by operation, within and between machines."""
    if plan.processes == 1:
        return []
    rows = [("GB that a process exchanges in a step", "")]
    for (operation, group), size in sorted(plan.step.traffic.items()):
        where = "in a machine" if group.size == group.on_machine else "between machines"
        rows.append((f"  {operation} of {group.size}, {where}", f"{size / 1e9:.2f}"))
    return rows


def _flops_rows(plan: Plan) -> list[tuple[str, str]]:
    steps = plan.recipe.schedule.steps
    rows = [(f"GFLOP of an item, {source}", f"{flops / 1e9:,.1f}") for source, flops in plan.flops_per_item.items()]
    rows.append(("GB that other kernels read and write", f"{plan.step.moved / 1e9:,.1f}"))
    rows.append(("PFLOP of a step", f"{plan.flops_per_step / 1e15:.3g}"))
    rows.append((f"EFLOP of {steps} steps", f"{steps * plan.flops_per_step / 1e18:.3g}"))
    return rows


def _time_rows(plan: Plan) -> list[tuple[str, str]]:
    """Seconds by what takes them on the plan's card, and days of the schedule on every card."""
    steps = plan.recipe.schedule.steps
    time = step_time(plan.step, plan.recipe, plan.processes, plan.card)
    rows = [(f"seconds, products at {UTILISATION:.0%} of the peak", "")]
    for name, seconds in time._asdict().items():
        rows.append((f"  {name}" + ("  <- limits" if name == time.limit else ""), f"{seconds:.3g}"))
    for card in CARDS.values():
        time = step_time(plan.step, plan.recipe, plan.processes, card)
        rows.append((f"days on {card.name}, limited by {time.limit}", f"{steps * max(time) / 86400:.3g}"))
    return rows
