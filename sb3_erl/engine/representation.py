"""How a vector of parameters becomes a network that acts: the border between a population and the policy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.policies import BasePolicy
from torch import Tensor, nn

from sb3_erl.core.checks import check_policy_kwargs
from sb3_erl.core.parameters import ParameterLayout, copy_buffers, read_parameters, write_parameters
from sb3_erl.core.seeding import scoped_generators
from sb3_erl.evolution.base import to_numpy
from sb3_erl.rollouts.acting import ModuleActor, NetworkPool, candidates_stack, numpy_population, tensors_of
from sb3_erl.rollouts.jobs import PopulationActor


class Representation(ABC):
    """
    How the individuals of a population are made of their parameters.

    :param layout: tensors of one individual
    """

    layout: ParameterLayout

    @abstractmethod
    def make(self) -> BasePolicy:
        """:return: a new network of an individual's shape, with random parameters"""

    def fresh(self, n: int) -> Tensor:
        """
        :param n: number of individuals
        :return: ``(n, n_params)``, newly initialized individuals
        """
        return torch.stack([self.read(self.make()) for _ in range(n)])

    def own_part(self, network: Any) -> nn.Module:
        """
        :param network: of an individual's shape
        :return: that part of it whose parameters are the individual; the rest is shared with others
        """
        return network

    def read(self, network: Any) -> Tensor:
        """:return: ``(n_params,)``, the parameters of an individual with this network"""
        return read_parameters(self.own_part(network))

    @abstractmethod
    def act(self, vectors: Tensor) -> PopulationActor:
        """
        :param vectors: ``(n, n_params)``, not to be written while they act
        :return: acts for all of them
        """

    @abstractmethod
    def write(self, vector: Tensor, network: Any) -> None:
        """
        Make a network act as an individual does.

        :param vector: ``(n_params,)``
        :param network: of an individual's shape, overwritten
        """

    def agent(self, vector: Tensor) -> BasePolicy:
        """
        :param vector: ``(n_params,)``
        :return: a policy of its own with these parameters; has ``predict``
        """
        with scoped_generators(np.random.SeedSequence(0)):  # its first parameters are overwritten
            network = self.make()
        self.write(vector, network)
        network.set_training_mode(False)
        return network

    def from_learner(self) -> Tensor | None:
        """
        :return: ``(n_params,)``, the learner's acting network as an individual; ``None`` if it has another shape
        """
        return None


class WholeNetworks(Representation):
    """
    An individual is all parameters of a network of the learner's shape: an actor, or a Q-network.

    Buffers of the network (running statistics, TD7's embedding) are no part of an individual: all have those of the learner.

    :param policy: makes networks with ``make_actor``
    :param learner: the learner's own network, such as ``policy.actor``
    """

    def __init__(self, policy: Any, learner: Any):
        self.policy, self._learner = policy, learner
        self.layout = ParameterLayout.of(learner)
        self.networks = NetworkPool(self.make)

    @property
    def learner(self) -> Any:
        """The learner's own network."""
        return self._learner

    def make(self) -> BasePolicy:
        """See :meth:`Representation.make`."""
        network = self.policy.make_actor()
        network.set_training_mode(False)
        return network

    def act(self, vectors: Tensor) -> PopulationActor:
        """See :meth:`Representation.act`."""
        network = self.learner
        fast = numpy_population(network, candidates_stack(network, to_numpy(vectors)))
        return ModuleActor(self.networks.filled(vectors, network)) if fast is None else fast

    def write(self, vector: Tensor, network: Any) -> None:
        """See :meth:`Representation.write`."""
        copy_buffers(self.learner, network)
        write_parameters(vector, network)  # after the buffers, of which some follow from parameters

    def from_learner(self) -> Tensor | None:
        """See :meth:`Representation.from_learner`."""
        return read_parameters(self.learner)


class MemberNetworks(WholeNetworks):
    """
    Candidates of the active member of a meta-population, which act with the buffers of its network.

    :param policy: makes networks with ``make_actor``
    :param members: has ``network``, that of the active member
    """

    def __init__(self, policy: Any, members: Any):
        self.members = members
        super().__init__(policy, members.network)

    @property
    def learner(self) -> Any:
        """The network of the active member."""
        return self.members.network


class OwnNetworks(WholeNetworks):
    """
    An individual is all parameters of a network of another shape than the learner's.

    The learner cannot be copied into such a population. It can be imitated, see
    :class:`~sb3_erl.engine.replace.ImitateLearner`.

    :param policy: a policy of its own, made with ``population_policy_kwargs``
    """

    def __init__(self, policy: Any):
        super().__init__(policy, policy.deployed)

    def from_learner(self) -> Tensor | None:
        """See :meth:`Representation.from_learner`: the learner has another shape."""
        return None


def own_networks(model: Any, policy_kwargs: dict[str, Any]) -> OwnNetworks:
    """
    :param model: with the policy class and the spaces of the learner
    :param policy_kwargs: arguments of the population's policy
    :return: individuals of the architecture that these arguments describe
    :raises ValueError: if the learner's actors read an embedding of the learner's, which such individuals would lack
    """
    if getattr(model.policy, "encoder", None) is not None:
        raise ValueError(
            "population_policy_kwargs needs a learner whose actors read observations; got "
            f"{type(model.learner).__name__}, whose actors read its embedding. Choose learner='td3', 'ddpg' or 'sac'"
        )
    check_policy_kwargs(model.policy_class, policy_kwargs)
    policy = model.policy_class(model.observation_space, model.action_space, model.lr_schedule, **policy_kwargs)
    return OwnNetworks(policy.to(model.device))


class SharedHeads(Representation):
    """
    An individual is a linear head on features that all share with the learner, as in ERL-Re2 and EvoRainbow.

    Hao et al. (ICLR 2023), https://arxiv.org/abs/2210.17375, section 3.

    :param policy: with an ``actor`` that has ``encoder_parameters`` and ``head``: a linear layer, or several of them that read
        the same features
    """

    def __init__(self, policy: Any):
        self.policy = policy
        self.layout = ParameterLayout.of(policy.actor.head)
        self.networks = NetworkPool(policy.make_actor)

    def make(self) -> BasePolicy:
        """See :meth:`Representation.make`."""
        return self.policy.make_actor()

    def own_part(self, network: Any) -> nn.Module:
        """See :meth:`Representation.own_part`; the head."""
        return network.head

    def weights_and_biases(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """
        :param vectors: ``(n, n_params)``
        :return: ``(n, rows, feature_dim)`` and ``(n, rows)`` in the learner's precision, a head's layers one after another
        """
        parts: Any = self.layout.split(vectors.to(next(self.policy.actor.head.parameters()).dtype))
        kinds = ([part for name, part in parts.items() if name.endswith(kind)] for kind in ("weight", "bias"))
        weight, bias = (torch.cat(tensors, dim=1) for tensors in kinds)
        return weight, bias

    def act(self, vectors: Tensor) -> PopulationActor:
        """See :meth:`Representation.act`."""
        actor = self.policy.actor
        parts = self.layout.split(vectors)
        places = {layer: f"{name}." if name else "" for name, layer in actor.head.named_modules()}

        def stack_of(layer: nn.Module) -> Any:
            if layer not in places:
                return tensors_of(layer)
            names = [places[layer] + name for name, _ in layer.named_parameters()]
            return tuple(to_numpy(parts[name]) for name in names)  # type: ignore[arg-type]

        fast = numpy_population(actor, stack_of)
        if fast is not None:
            return fast
        encoder = torch.cat([p.detach().reshape(-1) for p in actor.encoder_parameters()])
        whole = torch.cat([encoder.expand(len(vectors), -1), vectors], dim=1)
        return ModuleActor(self.networks.filled(whole, actor))

    def write(self, vector: Tensor, network: Any) -> None:
        """See :meth:`Representation.write`: the encoder is that of the learner as it is now."""
        network.load_state_dict(self.policy.actor.state_dict())
        write_parameters(vector, network.head)

    def from_learner(self) -> Tensor | None:
        """See :meth:`Representation.from_learner`."""
        return read_parameters(self.policy.actor.head)
