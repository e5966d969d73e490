"""What happens after each epoch."""

from trainers.evaluation.validation import Validation
from trainers.trainer import Trainer


def epoch_ended(trainer: Trainer, validation: Validation) -> None:
    """See the trainer after a validated epoch, once its checkpoints are written; here nothing is done.

    A line in the log, for example:

        trainer.reporter.log(f"rate {trainer.state.rate():.3g}")
    """
