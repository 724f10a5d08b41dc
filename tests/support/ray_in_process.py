"""As much of Ray as the plug-in uses, without processes: an actor is an object, and gets and gives copies."""

from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import ray
from ray.exceptions import RayActorError, RayTaskError


class Crash(BaseException):
    """Stands for the end of an actor's process."""


def crash():
    raise Crash


class Actor:
    def __init__(self, make, options):
        self.make = make
        self.options = options
        self.instance = make()

    def __getattr__(self, method):
        return SimpleNamespace(remote=partial(self.call, method))

    def call(self, method, *arguments):
        """The answer or the error, where Ray gives a reference to it."""
        for _ in range(1 + self.options["max_task_retries"]):
            try:
                return deepcopy(getattr(self.instance, method)(*deepcopy(arguments)))
            except Crash:
                self.instance = self.make()
            except Exception as error:
                return RayTaskError(method, "", error)
        return RayActorError()


class RayInProcess:
    def __init__(self, resources=None, num_nodes=1):
        self.resources = resources or {"CPU": 2}
        self.num_nodes = num_nodes
        self.actors = []

    def install(self, monkeypatch):
        for name in ("is_initialized", "cluster_resources", "nodes", "remote", "get", "kill"):
            monkeypatch.setattr(ray, name, getattr(self, name))

    def is_initialized(self):
        return True

    def cluster_resources(self):
        return self.resources

    def nodes(self):
        return [{"Alive": True}] * self.num_nodes + [{"Alive": False}]

    def remote(self, **options):
        def decorate(cls):
            def start(*arguments):
                self.actors.append(Actor(lambda: cls(*deepcopy(arguments)), options))
                return self.actors[-1]

            return SimpleNamespace(remote=start)

        return decorate

    def get(self, reference):
        if isinstance(reference, list):
            return [self.get(element) for element in reference]
        if isinstance(reference, Exception):
            raise reference
        return reference

    def kill(self, actor):
        """An object ends by itself."""
