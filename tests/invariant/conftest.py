"""What the tests of stopping and resuming share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from align.engine.monitor import StopCallback


@pytest.fixture
def signal_at() -> Callable[[int], AbstractContextManager[None]]:
    """`with signal_at(k)`: a real SIGTERM to this process at the end of optimizer step k."""

    @contextmanager
    def sending(step: int) -> Iterator[None]:
        original = StopCallback.on_step_end

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return original(self, args, state, control, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(StopCallback, "on_step_end", on_step_end)
            yield

    return sending
