from fakes.hosts.fixtures import *  # noqa: F403 - fixtures
