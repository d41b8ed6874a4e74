"""Hooks that stay behind when their module is copied, pickled or saved: what leaves is a plain model."""

from __future__ import annotations

import functools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torch.utils.hooks import RemovableHandle

_TABLES = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
_GETSTATE = "__getstate__"


def leave_behind(module: nn.Module, hooks: Iterable[RemovableHandle]) -> Callable[[], None]:
    """Until the returned function is called, `copy.deepcopy`, `pickle` and `torch.save` leave `hooks` out.

    Both ask an object for its state by `__getstate__`, and find this one on the module itself.

    Args:
        module: Which has no `__getstate__` of its own by this function.
        hooks: What `module.register_forward_hook` and the like returned.

    Example:

        >>> undo = leave_behind(model, [model.register_forward_hook(print)])
        >>> copy.deepcopy(model)._forward_hooks
        OrderedDict()
    """
    ids = {hook.id for hook in hooks}
    vars(module)[_GETSTATE] = functools.partial(_state_without, weakref.ref(module), ids)
    return functools.partial(vars(module).pop, _GETSTATE, None)


def _state_without(reference: weakref.ref[nn.Module], ids: set[int]) -> Any:
    module = reference()
    assert module is not None
    of_class = getattr(type(module), _GETSTATE, None)
    plain = of_class is None or of_class is getattr(object, _GETSTATE, None)
    state = vars(module) if plain else of_class(module)  # type: ignore[misc]
    if not isinstance(state, dict):
        return state
    kept = {name: value for name, value in state.items() if name != _GETSTATE}
    for name in _TABLES:
        kept[name] = OrderedDict((key, hook) for key, hook in kept[name].items() if key not in ids)
    return kept
