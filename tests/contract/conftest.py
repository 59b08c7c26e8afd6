from fakes.hosts.fixtures import hosts, running_hosts  # noqa: F401 - fixtures
