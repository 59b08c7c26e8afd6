from fakes.hosts.fixtures import *  # noqa: F403 - fixtures


def pytest_configure(config):
    config.addinivalue_line("markers", "long: takes long by its nature")
