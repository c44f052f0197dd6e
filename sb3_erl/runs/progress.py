"""A progress bar that counts the steps that are counted."""

from __future__ import annotations

from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback, ProgressBarCallback
from stable_baselines3.common.type_aliases import MaybeCallback


class StepProgressBar(ProgressBarCallback):
    """
    SB3's progress bar at ``num_timesteps``.

    SB3 adds the number of environments at each call. Here slots without a job are not counted, workers report one step at a
    call, and offline learning counts updates.

    :raises ImportError: without tqdm and rich
    """

    _begun_at = 0

    def _on_step(self) -> bool:
        self.pbar.update(self.model.num_timesteps - self._begun_at - self.pbar.n)
        return True

    def _on_training_start(self) -> None:
        super()._on_training_start()
        self._begun_at = self.model.num_timesteps

    def _on_training_end(self) -> None:
        self._on_step()  # steps that were counted without a call
        super()._on_training_end()


def count_steps(callback: MaybeCallback) -> None:
    """
    Make SB3's bars among a user's callbacks count steps as well; the Zoo's ``-P`` adds such a one.

    :param callback: what a user gives to ``learn``
    """
    if type(callback) is ProgressBarCallback:
        callback.__class__ = StepProgressBar
    for each in callback.callbacks if isinstance(callback, CallbackList) else callback if isinstance(callback, list) else ():
        count_steps(each)


def with_progress_bar(callback: MaybeCallback) -> BaseCallback:
    """
    :param callback: what a user gives to ``learn``
    :return: the same and a progress bar
    """
    if isinstance(callback, list):
        callback = CallbackList(callback)
    if not isinstance(callback, BaseCallback):
        callback = ConvertCallback(callback)
    return CallbackList([callback, StepProgressBar()])
