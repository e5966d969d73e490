"""Further numbers of a validation."""

from trainers.evaluation.validation import Validation


def further_numbers(validation: Validation) -> dict[str, float]:
    """Return numbers by name for the report, TensorBoard and best.json; here none.

    The mean F1 of a classifier's classes, for example:

        return {"mean_f1": statistics.fmean(row["f1"] or 0.0 for row in validation.per_class)}
    """
    return {}
