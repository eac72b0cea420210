"""How much a slimmed model disagrees with the dense one on some images, for hundreds of schedules.

A layer is run as its steps: the hooks of the method and the two halves of the block, a program each (`_STEPS`). Weights
are arguments, so programs are shared wherever their traced computations are the same: between layers, schedules and
methods. The halves of a block are compiled once per number of tokens; what a method does between them, which is small,
once per pair of numbers. And what the layers in front gave is kept, so that a schedule that differs from an earlier one
in its later layers begins there. No count is padded: every schedule computes exactly what its model computes.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from slimvit_jax.backbones.base import Backbone
from slimvit_jax.budget.schedules import Counts
from slimvit_jax.errors import SlimError
from slimvit_jax.inference.evaluate import probabilities
from slimvit_jax.slimming import Slimming

#: What the tokens after so many layers may take at most, over all schedules that are remembered.
REMEMBERED = 1 << 30
#: A process may map 65,530 pieces of memory on Linux by default; a compiled program takes about 40 of them on a CPU.
MOST_PROGRAMS = 800


class Family(NamedTuple):
    """A method of which only the counts are open.

    Attributes:
      name: of the method and its options, for tables.
      method: bound to the backbone.
    """

    name: str
    method: Slimming

    def at(self, counts: Counts) -> Slimming:
        """The method at these counts.

        Raises:
          SlimError: it does not leave what it was told to.
        """
        options = self.method.at_counts(counts)
        if options is None:
            raise SlimError(f"method {self.method.method!r} cannot be told how many patches to leave in every layer")
        made = self.method.clone(**options)
        left = (*made.plan.attention[1:], made.plan.mlp[-1])
        if left != tuple(counts):
            raise SlimError(f"{self.name}: told to leave {tuple(counts)} patches, it leaves {left}")
        return made

    def options(self, counts: Counts) -> dict[str, Any]:
        """Keywords of `create_model` for the method at these counts, without those that are what they are anyway."""
        made = self.at(counts)
        defaults = {field.name: field.default for field in dataclasses.fields(made)}
        return {"method": made.method} | {k: v for k, v in made.options().items() if v != defaults[k]}


class _Layer(nn.Module):
    """A block and a method side by side, so that a step can use the parameters of both."""

    block: Any
    slim: Any

    def __call__(self, step: Callable[..., Any], *values: Any) -> Any:
        return step(self.slim, self.block, *values)


# The steps of a layer at inference, in the order of `encoder.encode`. Each takes and gives tokens and probe.
def _before(slim: Any, block: Any, layer: int, tokens: Any, probe: Any) -> Any:
    return slim.before_block(tokens, layer, False), probe


def _attend(slim: Any, block: Any, layer: int, tokens: Any, probe: Any) -> Any:
    return slim.attend(tokens, layer, block, False)


def _between(slim: Any, block: Any, layer: int, tokens: Any, probe: Any) -> Any:
    return slim.after_attention(tokens, layer, probe, False), {}


def _feed_forward(slim: Any, block: Any, layer: int, tokens: Any, probe: Any) -> Any:
    return tokens.add(block.feed_forward(tokens, False)), {}


def _after(slim: Any, block: Any, layer: int, tokens: Any, probe: Any) -> Any:
    return slim.after_block(tokens, layer, False), {}


_STEPS = (_before, _attend, _between, _feed_forward, _after)


class Layerwise:
    """The outputs of a backbone under any method and schedule on fixed images.

    Args:
      model: a ViT of `create_model`; its method does not matter.
      variables: its variables; with "slim" parameters where a family's method reads such.
      images: (n, H, W, C) float32, prepared for the model.
      batch_size: images per program call.
      programs: of another one of the same model, to share.

    Raises:
      SlimError: for images that do not fit.
    """

    def __init__(
        self,
        model: Backbone,
        variables: Any,
        images: np.ndarray,
        batch_size: int = 16,
        programs: Programs | None = None,
    ) -> None:
        if len(images) == 0:
            raise SlimError("no images: there is nothing to agree on")
        model.check_images(np.shape(images))
        params = variables["params"]
        self.model, self.programs = model, Programs() if programs is None else programs
        self._slim = params.get("slim", {})
        self._rest = {**variables, "params": {k: v for k, v in params.items() if k != "slim"}}
        self._blocks = [params[f"blocks_{layer}"] for layer in range(model.depth)]
        options = {**model.block_options, "parent": None}
        self._block = model.block_class(**options)
        size = min(batch_size, len(images))
        padded = np.concatenate([images, np.repeat(images[-1:], -len(images) % size, axis=0)])
        embed = jax.jit(lambda variables, images: model.apply(variables, images, method=_embedded))
        self._count = len(images)
        batches = [padded[start : start + size] for start in range(0, len(padded), size)]
        self._embedded = [embed(variables, jnp.asarray(batch, jnp.float32)) for batch in batches]
        self._states: collections.OrderedDict[Any, list[Any]] = collections.OrderedDict()
        self._bytes = 0

    def outputs(self, family: Family | None, counts: Counts = ()) -> np.ndarray:
        """(n, C) float32 logits, or pooled features of a model without classes; family None: of the dense model."""
        depth, patches = self.model.depth, self.model.geometry.num_patches
        counts = counts if family is not None else (patches,) * depth
        slim = Slimming(geometry=self.model.geometry) if family is None else family.at(counts)
        name = "" if family is None else family.name
        done = self._remembered(name, counts)
        states = self._states[name, counts[:done]] if done else self._start(name, slim)
        for layer in range(done + 1, depth + 1):
            states = [self._layer(name, slim, layer, counts, state) for state in states]
            self._remember((name, counts[:layer]), states)
        model = self.model.clone(slim=slim)
        variables = {**self._rest, "params": {**self._rest["params"], "slim": self._slim}}
        key = (name, "read")
        out = [self.programs.call(key, lambda v, t: model.apply(v, t, method=_read), variables, t) for t in states]
        return np.concatenate([np.asarray(part, np.float32) for part in out])[: self._count]

    def disagreement(self, dense: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """(n,) float64 of `divergence` where the model has classes, else of `turned`."""
        return (divergence if self.model.num_classes else turned)(dense, outputs)

    def _start(self, name: str, slim: Slimming) -> list[Any]:
        start = lambda params, tokens: slim.apply({"params": params}, tokens, method=_started)
        return [self.programs.call((name, "start"), start, self._slim, tokens) for tokens in self._embedded]

    def _layer(self, name: str, slim: Slimming, layer: int, counts: Counts, tokens: Any) -> Any:
        """The tokens after a layer. Hooks read nothing of the counts but what the layer takes in and leaves."""
        params = {"block": self._blocks[layer - 1], "slim": self._slim}
        module = _Layer(self._block, slim.clone(parent=None))
        before = counts[layer - 2] if layer > 1 else self.model.geometry.num_patches
        probe: Any = {}
        for step in _STEPS:
            plain = step is _feed_forward or (step is _attend and type(slim).attend is Slimming.attend)
            memory = tokens.memory
            given = tokens.replace(memory={}) if plain else tokens  # what a step does not read makes no other program

            def run(params: Any, tokens: Any, probe: Any, step: Any = step) -> Any:
                tokens, probe = module.apply({"params": params}, step, layer, tokens, probe)
                return tokens.replace(taps={}, kept=()), probe

            key = (name, step.__name__, layer, before, counts[layer - 1])
            tokens, probe = self.programs.call(key, run, params, given, probe)
            tokens = tokens.replace(memory=memory) if plain else tokens
        return tokens

    def _remembered(self, name: str, counts: Counts) -> int:
        """How many layers in front are known; what is found counts as used last."""
        known = [n for n in range(1, len(counts) + 1) if (name, counts[:n]) in self._states]
        for n in known:
            self._states.move_to_end((name, counts[:n]))
        return known[-1] if known else 0

    def _remember(self, key: Any, states: list[Any]) -> None:
        self._states[key] = states
        self._bytes += _size(states)
        while self._bytes > REMEMBERED and len(self._states) > 1:
            self._bytes -= _size(self._states.popitem(last=False)[1])


def _embedded(model: Any, images: Any) -> Any:
    return model.embed(images, False, None).replace(taps={})


def _started(slim: Any, tokens: Any) -> Any:
    return slim.start(tokens, False).replace(taps={})


def _read(model: Any, tokens: Any) -> Any:
    return model.read(model.slim.finish(tokens, False), False)[2]


def _size(states: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(states))


class Programs:
    """Compiled functions: what traces to the same computation is compiled once, what computes nothing never.

    Past `MOST_PROGRAMS` all are forgotten, and what is still wanted is compiled again.

    Attributes:
      compiled: how often something was compiled.
    """

    def __init__(self) -> None:
        self.compiled = 0
        self._by_key: dict[Any, Any] = {}
        self._by_text: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self._by_text)

    def call(self, key: Any, function: Callable[..., Any], *arguments: Any) -> Any:
        """`function` of these arrays; two functions under one key and for one shape of arguments must be the same."""
        leaves, tree = jax.tree.flatten(arguments)
        key = (key, tree, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        if key not in self._by_key:
            self._by_key[key] = self._program(function, arguments)
        return self._by_key[key](*arguments)

    def _program(self, function: Callable[..., Any], arguments: Sequence[Any]) -> Callable[..., Any]:
        traced = jax.jit(function, keep_unused=True).trace(*arguments)
        jaxpr, tree = traced.jaxpr, jax.tree.structure(traced.out_info)
        places = {var: place for place, var in enumerate(jaxpr.jaxpr.invars)}
        if not jaxpr.eqns and all(not hasattr(v, "val") and v in places for v in jaxpr.jaxpr.outvars):
            chosen = [places[v] for v in jaxpr.jaxpr.outvars]
            return lambda *given: jax.tree.unflatten(tree, [jax.tree.leaves(given)[place] for place in chosen])
        constants = tuple((c.shape, str(c.dtype), np.asarray(c).tobytes()) for c in map(jnp.asarray, jaxpr.consts))
        text = (str(jaxpr), constants)
        if text not in self._by_text:
            if len(self) == MOST_PROGRAMS:
                self._by_key.clear()
                self._by_text.clear()
            flat = jax.jit(lambda *leaves: jax.core.eval_jaxpr(jaxpr.jaxpr, jaxpr.consts, *leaves))
            self._by_text[text] = flat.lower(*jax.tree.leaves(arguments)).compile()
            self.compiled += 1
        run = self._by_text[text]
        return lambda *given: jax.tree.unflatten(tree, run(*jax.tree.leaves(given)))


def divergence(dense: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """(n,) float64: KL(dense || outputs) of the softmaxed logits (n, C) of every image, in nats."""
    wanted, found = (np.maximum(probabilities(logits), 1e-300) for logits in (dense, outputs))
    return np.asarray((wanted * np.log(wanted / found)).sum(axis=1))


def turned(dense: np.ndarray, outputs: np.ndarray) -> np.ndarray:
    """(n,) float64: 1 - the cosine of two features (n, D) of every image."""
    a, b = (np.asarray(features, np.float64) for features in (dense, outputs))
    cosine = (a * b).sum(axis=1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-30)
    return np.asarray(1 - cosine)
